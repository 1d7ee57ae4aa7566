"""From settings to a corpus: read, split, clean, limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data.cleaning.pairs import DROPPED_SCHEMA, Cleaned, Rules, clean
from data.cleaning.split_overlap import Share, alone, overlap_of_pairs
from data.cleaning.splits import cut, sample
from data.cleaning.wen import OVERLAP_SCHEMA
from data.reading.dialogues import RAW_SCHEMA, raw_batches
from data.reading.reading import Progress, read
from data.reading.specs import DatasetSettings

SPLITS = ("train", "validation", "test")
_PRECEDENCE = ("train", "test", "validation")  # an overlapping pair stays in the first of these that has it


@dataclass(frozen=True)
class Corpus:
    """Clean pairs: three tables (id int64, dialogue, source, target: string), ids counting from 0 in each.

    dropped: table (split, dialogue, source, target, reason) of every pair that was read and is not clean, its white
    space normalised. num_clean: pairs per split before `limit`, `max_validation` and `max_test` took a sample.
    """

    train: Any
    validation: Any
    test: Any
    dropped: Any
    num_clean: dict[str, int]
    overlaps: Any
    split_overlaps: Any

    def splits(self) -> dict[str, Any]:
        return {split: getattr(self, split) for split in SPLITS}

    def drops(self) -> dict[tuple[str, str], int]:
        """Number of dropped rows by (split, reason), in sorted order."""
        rows = zip(self.dropped["split"].to_pylist(), self.dropped["reason"].to_pylist(), strict=True)
        return dict(sorted(Counter(rows).items()))


def load(
    settings: DatasetSettings,
    seed: int = 0,
    limit: int | None = None,
    progress: Progress = lambda done, total: None,
    share: Share = alone,
) -> Corpus:
    """The corpus of `settings`: the same input gives the same rows in the same order.

    limit: at most this many training pairs, a seeded sample. What is validation and test does not depend on it:
    overlap is removed against the whole of train. share: who searches for what splits have in common.
    Raises ValueError (one line what, one line what to do) for input that cannot be used, FileNotFoundError.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    source = read(settings, progress)
    raw: dict[str, Iterable[Any]] = {split: raw_batches(rows) for split, rows in source.rows.items()}
    shares = {split: _share(settings, split) for split in SPLITS if split not in raw}
    if shares:
        whole = pa.Table.from_batches(raw["train"], schema=RAW_SCHEMA)
        if whole.num_rows == 0:
            raise ValueError(_why_empty("train", DROPPED_SCHEMA.empty_table(), settings))
        raw |= {split: part.to_batches() for split, part in cut(whole, shares, seed).items()}
    cleaned = _clean_splits(settings, raw)
    limits = {"train": limit, "validation": settings.max_validation, "test": settings.max_test}
    return Corpus(
        **{split: _numbered(sample(cleaned[split].kept, limits[split], seed)) for split in SPLITS},
        dropped=pa.concat_tables([cleaned[split].dropped for split in SPLITS]),
        num_clean={split: cleaned[split].kept.num_rows for split in SPLITS},
        overlaps=OVERLAP_SCHEMA.empty_table() if source.search is None else source.search.overlaps,
        split_overlaps=_split_overlaps(cleaned, share) if source.search is None else source.search.split_overlaps,
    )


def _share(settings: DatasetSettings, split: str) -> float:
    return settings.validation_share if split == "validation" else settings.test_share


def _clean_splits(settings: DatasetSettings, raw: dict[str, Iterable[Any]]) -> dict[str, Cleaned]:
    """Each split loses what one before it in _PRECEDENCE has; with Wen et al.'s cleaning, only what train has.

    Raises ValueError for one of which nothing is left.
    """
    only_train = settings.wen_rules() is not None
    rules = Rules(settings.max_source_words, settings.max_target_words, settings.lowercase)
    cleaned: dict[str, Cleaned] = {}
    for split in _PRECEDENCE:
        others = {name: done.keys for name, done in cleaned.items() if name == "train" or not only_train}
        if not settings.remove_overlap:
            others = {}
        cleaned[split] = clean(split, raw[split], rules, others)
        if cleaned[split].kept.num_rows == 0:
            raise ValueError(_why_empty(split, cleaned[split].dropped, settings))
    return cleaned


def _split_overlaps(cleaned: dict[str, Cleaned], share: Share) -> Any:
    kept = {split: each.kept for split, each in cleaned.items()}
    return overlap_of_pairs(kept, {split: each.dropped for split, each in cleaned.items()}, share=share)


def _why_empty(split: str, dropped: Any, settings: DatasetSettings) -> str:
    reasons = Counter(dropped["reason"].to_pylist())
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    found = f"all {dropped.num_rows} rows dropped: {counts}" if counts else "no rows read"
    advice = "give more data, or change the rule that dropped it"
    name = settings.split_names().get(split)
    if not counts and name is not None and settings.source in ("files", "hub"):
        advice = f"{name} has none: give more data"
    return f"the split {split} is empty after cleaning: {found}\n{advice}"


def _numbered(table: Any) -> Any:
    return table.add_column(0, pa.field("id", pa.int64()), pa.array(np.arange(table.num_rows)))
