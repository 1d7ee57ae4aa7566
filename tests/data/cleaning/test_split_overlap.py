"""The overlap between splits against plain sets, however the search is cut, in memory that does not grow with it."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pyarrow as pa
import pytest

from data.cleaning import split_overlap
from data.cleaning.pairs import tokens
from data.cleaning.split_overlap import PAIRS, overlap_of_pairs

SPLITS = ("train", "validation", "test")
SCHEMA = pa.schema([(name, pa.string()) for name in ("dialogue", "source", "target")])
Row = tuple[str, str, str]


def table(rows: list[Row]) -> Any:
    """In two chunks, as what was cleaned in batches is."""
    middle = len(rows) // 2
    parts = [list(zip(*part, strict=True)) or [[], [], []] for part in (rows[:middle], rows[middle:])]
    return pa.concat_tables([pa.table([list(column) for column in part], schema=SCHEMA) for part in parts])


def made_up(rng: random.Random, name: str, num_rows: int, words: str = "abcdefgh!") -> list[Row]:
    """Rows of dialogues that are not together; some are empty."""

    def text() -> str:
        return " ".join(rng.choice(words) * rng.randint(1, 2) for _ in range(rng.randint(0, 6)))

    return [(f"{name} {rng.randrange(1 + num_rows // 2)}", text(), text()) for _ in range(num_rows)]


def slow(kept: dict[str, list[Row]], dropped: dict[str, list[Row]], threshold: float, most: int) -> list[list[Any]]:
    """Every dialogue with every other, by their sets."""
    found = []
    for time in ("before", "after"):
        dialogues: dict[str, list[set[str]]] = {}
        for split in SPLITS:
            words: dict[str, set[str]] = {}
            for name, source, target in [*kept[split], *(dropped[split] if time == "before" else [])]:
                words.setdefault(name, set()).update(tokens(source), tokens(target))
            dialogues[split] = list(words.values())
        for split, other in PAIRS:
            items = dialogues[split]
            if len(items) > most:
                items = [items[int(place * (len(items) - 1) / (most - 1))] for place in range(most)]
            scores = [
                max((2 * len(a & b) / max(len(a) + len(b), 1) for b in dialogues[other]), default=0) for a in items
            ]
            found.append([time, split, other, len(items), sum(score > threshold for score in scores)])
    return found


@pytest.mark.parametrize(("part_bytes", "chunk"), [(1, 10**6), (60, 3), (10**6, 1), (10**6, 10**6)])
@pytest.mark.parametrize("most", [3, 1000])
def test_the_search_in_parts_is_that_of_all_dialogues(
    monkeypatch: pytest.MonkeyPatch, part_bytes: int, chunk: int, most: int
) -> None:
    monkeypatch.setattr(split_overlap, "PART_BYTES", part_bytes)
    monkeypatch.setattr(split_overlap, "CHUNK_ITEMS", chunk)
    monkeypatch.setattr(split_overlap, "MAX_ITEMS", most)
    rng, shares = random.Random(part_bytes + chunk), set[float]()
    for _ in range(8):
        kept = {split: made_up(rng, split, rng.randint(1, 30)) for split in SPLITS}
        dropped = {split: made_up(rng, split, rng.randint(0, 12)) for split in SPLITS}
        found = overlap_of_pairs(*({split: table(each[split]) for split in SPLITS} for each in (kept, dropped)), 0.6)
        rows = found.to_pylist()
        told = [[row[name] for name in ("time", "split", "other", "items", "overlapping")] for row in rows]
        assert told == slow(kept, dropped, 0.6, most)
        assert [row["share"] for row in rows] == [row["overlapping"] / row["items"] for row in rows]
        shares |= {row["share"] for row in rows}
    assert len(shares) > 3


def test_a_part_has_its_size_in_text_and_in_dialogues_and_no_dialogue_is_in_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = made_up(random.Random(0), "train", 400)
    seen: list[Any] = []

    def share(lay_out: Any, parts: Any, opens: Any) -> Any:
        seen.extend(parts)
        return split_overlap.alone(lay_out, parts, opens)

    monkeypatch.setattr(split_overlap, "PART_BYTES", 500)
    monkeypatch.setattr(split_overlap, "CHUNK_ITEMS", 20)
    empty = dict.fromkeys(SPLITS, table([]))
    overlap_of_pairs(empty | {"train": table(rows)}, empty, share=share)
    names = list(dict.fromkeys(name for name, _, _ in rows))
    assert [part.first for part in seen] == [0, *(part.last for part in seen[:-1])]
    assert seen[-1].last == len(names)
    for part in seen:
        inside = names[part.first : part.last]
        sizes = [sum(len(a) + len(b) for name, a, b in rows if name == each) for each in inside]
        assert len(inside) <= 20
        assert sum(sizes) <= 500 + max(sizes)


def peak_bytes(num_rows: int) -> int:
    """What Python and NumPy hold at most while a corpus is searched that lies in memory, besides that corpus."""
    rng = random.Random(0)
    words = [f"word{number}" for number in range(3000)]
    rows = [(str(i), " ".join(rng.choices(words, k=60)), " ".join(rng.choices(words, k=20))) for i in range(num_rows)]
    kept = {"train": table(rows), "validation": table(rows[:50]), "test": table(rows[:50])}
    dropped = dict.fromkeys(SPLITS, table([]))
    tracemalloc.start()
    overlap_of_pairs(kept, dropped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_overlap, "PART_BYTES", 100_000)
    assert peak_bytes(8000) < 1.5 * peak_bytes(1000)
