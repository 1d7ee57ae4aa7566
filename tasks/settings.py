"""Settings that are made of other settings: a run is told them side by side, each stage takes its own."""

from dataclasses import fields
from typing import Any, TypeVar

S = TypeVar("S")


def part_of(settings: Any, kind: type[S], **changed: Any) -> S:
    """The settings of class `kind` that are among `settings`, by their names; `changed` has those that are not.

    Raises AttributeError for one that is in neither, ValueError as `kind` does.
    """
    names = [field.name for field in fields(kind) if field.name not in changed]  # type: ignore[arg-type]
    return kind(**{name: getattr(settings, name) for name in names} | changed)
