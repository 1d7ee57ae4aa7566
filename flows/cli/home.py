"""Where this shell's results are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.store.artifacts import Store


def store_here() -> Store:
    """The store of this shell."""
    from tasks.store.artifacts import Store

    return Store(root())


def root() -> Path:
    """Where results go. Raises ValueError where that cannot be known, or not hold a database."""
    from tasks.store.artifacts import default_root

    try:
        path = default_root()
    except RuntimeError:
        raise ValueError("DISTILL_HOME begins with ~, and there is no such user's home\ngive the whole path") from None
    if "?" in str(path):
        raise ValueError(
            f"DISTILL_HOME must not hold a question mark, got {path}: DuckDB cannot\nchoose another folder"
        )
    return path
