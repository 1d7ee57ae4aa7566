"""How much of validation and test is in other splits too, before the cleaning and after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.cleaning.overlap import TypeSets, best_partners, merge, type_sets

SPLIT_OVERLAP_SCHEMA = pa.schema(
    [
        ("time", pa.string()),  # before or after the cleaning
        ("split", pa.string()),
        ("other", pa.string()),
        ("items", pa.int64()),  # of `split` that were looked for in `other`
        ("overlapping", pa.int64()),  # of them, those with a partner there whose score is above the threshold
        ("share", pa.float64()),  # overlapping / items; null without items
        ("threshold", pa.float64()),  # Dice coefficient of the sets of word types
    ]
)
_COLUMNS = ["dialogue", "source", "target"]
PAIRS = (("validation", "train"), ("test", "train"), ("validation", "test"))
THRESHOLD = 0.75  # Wen et al.'s for dialogues
MAX_ITEMS = 1_000  # looked for, of a split: a share of 5 % is within 1.4 points of the whole's, one of 50 % within 3.1


def overlap_table(before: dict[str, TypeSets], after: dict[str, TypeSets], threshold: float) -> Any:
    """A table of SPLIT_OVERLAP_SCHEMA from the items of each split; all of them number their words alike."""
    rows = [
        _row(time, split, other, sets[split], sets[other], threshold)
        for time, sets in (("before", before), ("after", after))
        for split, other in PAIRS
    ]
    return pa.Table.from_pylist(rows, schema=SPLIT_OVERLAP_SCHEMA)


def overlap_of_pairs(kept: dict[str, Any], dropped: dict[str, Any], threshold: float = THRESHOLD) -> Any:
    """The same from the pairs of each split; an item is a dialogue: the words of all its pairs.

    kept, dropped: tables with the columns dialogue, source and target. Before the cleaning there were both.
    """
    tables = {
        split: pa.concat_tables([kept[split].select(_COLUMNS), dropped[split].select(_COLUMNS)]) for split in kept
    }
    pairs = type_sets(pair for table in tables.values() for pair in _texts(table))
    before, after, begin = {}, {}, 0
    for split, table in tables.items():
        dialogues = _dialogue_numbers(table)
        all_rows, kept_rows = np.arange(table.num_rows), np.arange(kept[split].num_rows)
        before[split] = merge(pairs.take(begin + all_rows), dialogues)
        after[split] = merge(pairs.take(begin + kept_rows), dialogues[kept_rows])
        begin += table.num_rows
    return overlap_table(before, after, threshold)


def _row(time: str, split: str, other: str, items: TypeSets, others: TypeSets, threshold: float) -> dict[str, Any]:
    if len(items) > MAX_ITEMS:  # evenly over the whole split: the same ones each time
        items = items.take(np.linspace(0, len(items) - 1, MAX_ITEMS).astype(np.int64))
    overlapping = int((best_partners(items, others).score > threshold).sum())
    return {
        "time": time,
        "split": split,
        "other": other,
        "items": len(items),
        "overlapping": overlapping,
        "share": overlapping / len(items) if len(items) else None,
        "threshold": threshold,
    }


def _texts(table: Any) -> Iterator[tuple[str, str]]:
    for batch in table.select(["source", "target"]).to_batches(max_chunksize=10_000):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _dialogue_numbers(table: Any) -> Any:
    """For each row the number of its dialogue, from 0 in order of first occurrence."""
    return pc.dictionary_encode(table["dialogue"].combine_chunks()).indices.to_numpy().astype(np.int64)
