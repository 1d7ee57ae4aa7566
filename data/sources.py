"""From settings to a corpus: read, split, clean, limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data.cleaning import Cleaned, Rules, clean
from data.dialogues import RAW_SCHEMA, chitchat_dialogues, pairs_of_turns, raw_batches
from data.specs import DatasetSettings
from data.splits import cut, sample

SPLITS = ("train", "validation", "test")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Corpus:
    """Clean pairs: three tables (id int64, dialogue, source, target: string), ids counting from 0 in each.

    dropped: table (split, dialogue, source, target, reason), with every pair that was read and not kept.
    num_clean: pairs per split before `limit`, `max_validation` and `max_test` took a sample of them.
    """

    train: Any
    validation: Any
    test: Any
    dropped: Any
    num_clean: dict[str, int]

    def splits(self) -> dict[str, Any]:
        return {split: getattr(self, split) for split in SPLITS}

    def drops(self) -> dict[tuple[str, str], int]:
        """Number of dropped rows by (split, reason), in sorted order."""
        rows = zip(self.dropped["split"].to_pylist(), self.dropped["reason"].to_pylist(), strict=True)
        return dict(sorted(Counter(rows).items()))


def load(
    settings: DatasetSettings, seed: int = 0, limit: int | None = None, progress: Progress = lambda done, total: None
) -> Corpus:
    """The corpus of `settings`: the same input gives the same rows in the same order.

    limit: at most this many training pairs, a seeded sample. What is validation and test does not depend on it:
    overlap is removed against the whole of train. progress(done, total) counts dialogues or rows read.
    Raises ValueError (one line what, one line what to do) for input that cannot be used; FileNotFoundError.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    cleaned = _clean_splits(settings, _raw_splits(settings, seed, progress))
    limits = {"train": limit, "validation": settings.max_validation, "test": settings.max_test}
    tables = {split: _numbered(sample(cleaned[split].kept, limits[split], seed)) for split in SPLITS}
    return Corpus(
        **tables,
        dropped=pa.concat_tables([cleaned[split].dropped for split in SPLITS]),
        num_clean={split: cleaned[split].kept.num_rows for split in SPLITS},
    )


def _raw_splits(settings: DatasetSettings, seed: int, progress: Progress) -> dict[str, Any]:
    """Raw tables by split, those that the source lacks cut from train."""
    dialogues = chitchat_dialogues()
    rows = (
        row
        for dialogue in dialogues
        for row in pairs_of_turns(dialogue, settings.context_turns, settings.turn_separator)
    )
    table = pa.Table.from_batches(raw_batches(rows), schema=RAW_SCHEMA)
    progress(len(dialogues), len(dialogues))
    return cut(table, {"validation": settings.validation_share, "test": settings.test_share}, seed)


def _clean_splits(settings: DatasetSettings, raw: dict[str, Any]) -> dict[str, Cleaned]:
    """Train first, then test, then validation: each loses the pairs that one before it has."""
    rules = Rules(settings.max_source_words, settings.max_target_words)
    cleaned: dict[str, Cleaned] = {}
    for split in ("train", "test", "validation"):
        others = {name: done.keys for name, done in cleaned.items()} if settings.remove_overlap else {}
        cleaned[split] = clean(split, raw[split].to_batches(), rules, others)
    return cleaned


def _numbered(table: Any) -> Any:
    return table.add_column(0, pa.field("id", pa.int64()), pa.array(np.arange(table.num_rows)))
