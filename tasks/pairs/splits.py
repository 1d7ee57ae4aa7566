"""The splits that `prepare` has written, as the other stages read them."""

from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from tasks.store.artifacts import Artifact


def read_split(corpus: Artifact, split: str, columns: Sequence[str], rows: int | None = None) -> dict[str, list[Any]]:
    """Columns of a prepared split, its first `rows` rows."""
    table = pq.read_table(corpus.path / f"{split}.parquet", columns=list(columns))
    return dict(table.slice(0, rows).to_pydict())
