"""Cutting by dialogue and sampling by hash."""

from __future__ import annotations

import hashlib
import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.cleaning.splits import assign_dialogues, cut, sample
from data.reading.dialogues import ONE_TURN, RAW_SCHEMA

SHARES = {"validation": 0.1, "test": 0.3}


@given(st.sets(st.text(max_size=4), min_size=4, max_size=60), st.integers(0, 2**31))
def test_shares_are_of_the_dialogues_and_order_does_not_matter(names: set[str], seed: int) -> None:
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    assigned = assign_dialogues(shuffled, SHARES, seed)
    assert assigned == assign_dialogues([*sorted(names), *sorted(names)], SHARES, seed)
    counts = {split: list(assigned.values()).count(split) for split in ("train", "validation", "test")}
    assert counts["validation"] == max(1, round(0.1 * len(names)))
    assert counts["test"] == max(1, round(0.3 * len(names)))
    assert sum(counts.values()) == len(names)


def test_the_draw_is_the_hash_of_seed_and_name() -> None:
    names = [f"d{i}" for i in range(10)]
    ranked = sorted(names, key=lambda name: hashlib.blake2b(f"7\0{name}".encode(), digest_size=16).hexdigest())
    assigned = assign_dialogues(names, SHARES, seed=7)
    assert [name for name in ranked if assigned[name] != "train"] == ranked[:4]
    assert assigned[ranked[0]] == "validation"
    assert assigned != assign_dialogues(names, SHARES, seed=8)


def test_too_few_dialogues_to_cut() -> None:
    with pytest.raises(ValueError, match=r"cannot cut validation and test from 2 dialogues: train would be empty\n"):
        assign_dialogues(["a", "b"], SHARES, seed=0)


def test_no_dialogue_in_two_splits_and_no_row_lost() -> None:
    rows = [(f"d{i % 20}", f"s{i}", f"t{i}", None) for i in range(100)] + [("alone", "s", "", ONE_TURN)] * 5
    columns = [list(column) for column in zip(*rows, strict=True)]
    parts = cut(pa.table(columns, schema=RAW_SCHEMA), SHARES, seed=0)
    dialogues = {split: set(part["dialogue"].to_pylist()) - {"alone"} for split, part in parts.items()}
    assert [len(dialogues[split]) for split in ("train", "validation", "test")] == [12, 2, 6]
    assert len(set().union(*dialogues.values())) == 20
    assert sum(part.num_rows for part in parts.values()) == len(rows)
    assert parts["train"]["dialogue"].to_pylist().count("alone") == 5  # counts for no share: it has no pair
    for part in parts.values():
        sources = [int(source[1:] or -1) for source in part["source"].to_pylist() if source != "s"]
        assert sources == sorted(sources)


@given(st.integers(0, 40), st.integers(1, 50), st.integers(0, 5))
def test_samples_are_nested_and_keep_the_order(num_rows: int, size: int, seed: int) -> None:
    table = pa.table({"x": list(range(num_rows))})
    smaller, larger = (sample(table, n, seed)["x"].to_pylist() for n in (size, size + 3))
    assert len(smaller) == min(size, num_rows)
    assert smaller == sorted(smaller)
    assert set(smaller) <= set(larger)
    assert sample(table, None, seed) is table


def test_a_sample_is_drawn_from_everywhere_and_by_seed() -> None:
    table = pa.table({"x": list(range(10_000))})
    first = sample(table, 1000, 0)["x"].to_pylist()
    # each half holds 500 ± 15 (one standard deviation); six of them fail once in 500 million seeds
    assert 410 < sum(x < 5000 for x in first) < 590
    assert first != sample(table, 1000, 1)["x"].to_pylist()
