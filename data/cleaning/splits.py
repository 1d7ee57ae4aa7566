"""Which dialogue goes to which split, and samples: by hash, with no random state that could change between versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()


def assign_dialogues(dialogues: Iterable[str], shares: dict[str, float], seed: int) -> dict[str, str]:
    """Dialogue -> split: for each split its share of the dialogues (at least one), the others to train.

    Dialogues are ranked by a hash of seed and name, so their order in the file does not matter.
    Raises ValueError if there are too few for every split to have one.
    """
    ranked = sorted(set(dialogues), key=lambda name: (_draw(seed, name), name))
    counts = {split: max(1, round(share * len(ranked))) for split, share in shares.items()}
    if sum(counts.values()) >= len(ranked):
        raise ValueError(
            f"cannot cut {' and '.join(shares)} from {len(ranked)} dialogues: train would be empty\n"
            "give more data, or the splits as files of their own; without dialogue_column each row is a dialogue"
        )
    assigned = dict.fromkeys(ranked, "train")
    start = 0
    for split, count in counts.items():
        assigned.update(dict.fromkeys(ranked[start : start + count], split))
        start += count
    return assigned


def cut(table: Any, shares: dict[str, float], seed: int) -> dict[str, Any]:
    """A raw table as train and the splits of `shares`, no dialogue in two of them; rows keep their order.

    Shares count the dialogues that have a pair (no flaw of their own); the rest go to train, where cleaning drops them.
    """
    with_pairs = table.filter(pc.is_null(table["flaw"]))["dialogue"].unique().to_pylist()
    assigned = assign_dialogues(with_pairs, shares, seed)
    split_of_row = pa.array([assigned.get(name, "train") for name in table["dialogue"].to_pylist()], pa.string())
    return {split: table.filter(pc.equal(split_of_row, split)) for split in ("train", *shares)}


def sample(table: Any, num_rows: int | None, seed: int) -> Any:
    """At most `num_rows` rows (None: all), drawn by hash of seed and position, in their order.

    A larger sample of the same table and seed contains the smaller one.
    """
    if num_rows is None or num_rows >= table.num_rows:
        return table
    ranked = sorted(range(table.num_rows), key=lambda row: _draw(seed, str(row)))
    drawn = np.zeros(table.num_rows, dtype=bool)
    drawn[ranked[:num_rows]] = True
    return table.filter(pa.array(drawn))  # chunk by chunk, where `take` would join more text than 2 GB offsets reach
