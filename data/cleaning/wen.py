"""The cleaning of Wen et al. (2022): items that overlap with another are dropped, what is left is shuffled into splits.

Source: Wen, Luo and Mou 2022, An Empirical Study on the Overlapping Problem of Open-Domain Dialogue Datasets, and its
code. Deviations: docs/methods/cleaning.md.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data.cleaning.overlap import Best, TypeSets, best_partners
from data.cleaning.split_overlap import overlap_table
from data.cleaning.wen_rules import SPLIT_SEED, WenRules

OVERLAP_SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("partner", pa.string()),  # the first item of the highest score; null where no item shares a word
        ("score", pa.float64()),
        ("decision", pa.string()),  # kept or dropped
        ("reason", pa.string()),  # null for what is kept because no rule is about it
        ("split", pa.string()),  # where it went; null for what is in none
    ]
)


@dataclass(frozen=True)
class Decision:
    """What the rules say about each item."""

    kept: Any  # (N,) bool
    reasons: list[str | None]


def decide(best: Best, rules: WenRules) -> Decision:
    """Greedy, in order: an item goes if its score is below `min_overlap`, or above `max_overlap` with its partner kept.

    So of two that overlap the later one stays. Source: Wen et al. 2022. Their published code for OpenSubtitles keeps an
    item that an earlier drop has named as its partner instead, which differs for chains and triples only.
    """
    kept = np.ones(len(best.score), dtype=bool)
    reasons: list[str | None] = [None] * len(best.score)
    for item, (partner, score) in enumerate(zip(best.partner.tolist(), best.score.tolist(), strict=True)):
        if rules.min_overlap is not None and score < rules.min_overlap:
            kept[item], reasons[item] = False, f"overlaps with nothing by {rules.min_overlap:g}"
        elif score > rules.max_overlap and kept[partner]:
            kept[item], reasons[item] = False, f"overlaps with its partner by more than {rules.max_overlap:g}"
        elif score > rules.max_overlap:
            reasons[item] = "its partner is dropped"
    return Decision(kept, reasons)


def shuffled_splits(items: Sequence[int], rules: WenRules, rng: random.Random) -> dict[str, list[int]]:
    """The items in the order of Python's shuffle: first those of test, then validation's, then train's.

    Raises ValueError if train would be empty.
    """
    order, held = list(items), rules.heldout_items
    rng.shuffle(order)
    if len(order) <= 2 * held:
        raise ValueError(
            f"{len(order)} items are left after the overlap search, too few for {held} in test, {held} in validation "
            "and any in train\ngive more data, or set heldout_items"
        )
    end = None if rules.train_items is None else 2 * held + rules.train_items
    return {"test": order[:held], "validation": order[held : 2 * held], "train": order[2 * held : end]}


@dataclass(frozen=True)
class Deduplicated:
    """The items of each split, by position; the findings about each item; the overlap between splits."""

    splits: dict[str, list[int]]
    overlaps: Any  # a table of OVERLAP_SCHEMA
    split_overlaps: Any  # a table of SPLIT_OVERLAP_SCHEMA


def deduplicate(
    names: Sequence[str], sets: TypeSets, rules: WenRules, rng: random.Random, official: dict[str, list[int]] | None
) -> Deduplicated:
    """Search, decide, split, and report.

    official: the splits that the data came in, by item; without them the overlap between splits `before` is that of
    the same shuffle with nothing dropped.
    Raises ValueError if too few items are left.
    """
    best = best_partners(sets)
    decision = decide(best, rules)
    before = official or shuffled_splits(range(len(names)), rules, random.Random(SPLIT_SEED))
    splits = shuffled_splits(np.flatnonzero(decision.kept).tolist(), rules, rng)
    split_of = {item: split for split, members in splits.items() for item in members}
    overlaps = {
        "item": list(names),
        "partner": [None if partner < 0 else names[partner] for partner in best.partner.tolist()],
        "score": best.score,
        "decision": ["kept" if kept else "dropped" for kept in decision.kept.tolist()],
        "reason": decision.reasons,
        "split": [split_of.get(item) for item in range(len(names))],
    }
    between = overlap_table(
        {split: sets.take(members) for split, members in before.items()},
        {split: sets.take(members) for split, members in splits.items()},
        rules.max_overlap,
    )
    return Deduplicated(splits, pa.table(overlaps, schema=OVERLAP_SCHEMA), between)
