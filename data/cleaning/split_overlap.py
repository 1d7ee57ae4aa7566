"""How much of validation and test is in other splits too, before the cleaning and after it.

The search among pairs is cut into parts: some dialogues of the split that is looked in. A part reads its own text and
that of the dialogues that are looked for, and no more. So its memory does not grow with the corpus, but for 8 bytes a
pair, and parts can be shared out among processes, through files that all of them see.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.cleaning.overlap import CHUNK_ITEMS, TypeSets, best_partners, merge, numbered, type_sets

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
PAIRS = (("validation", "train"), ("test", "train"), ("validation", "test"))
THRESHOLD = 0.75  # Wen et al.'s for dialogues
MAX_ITEMS = 1_000  # looked for, of a split: a share of 5 % is within 1.4 points of the whole's, one of 50 % within 3.1
PART_BYTES = 16 * 2**20  # of text; a dialogue is whole in one part
_FILE_SCHEMA = pa.schema(
    [("dialogue", pa.int64()), ("kept", pa.bool_()), ("source", pa.string()), ("target", pa.string())]
)


@dataclass(frozen=True)
class Part:
    """Some dialogues of a split, in which others are looked for: `first` to `last` - 1."""

    split: str
    first: int
    last: int


Work = Callable[[Part], Any]  # the highest scores that are found in a part: (searches, MAX_ITEMS) float64
# What lays out the files that parts are made from in a directory; the parts; what opens that directory, for the work
Share = Callable[[Callable[[Path], None], Sequence[Part], Callable[[Path], Work]], Iterable[Any]]


def alone(lay_out: Callable[[Path], None], parts: Sequence[Part], opens: Callable[[Path], Work]) -> Iterator[Any]:
    """What is found in each part, by this process."""
    with TemporaryDirectory() as name:
        lay_out(Path(name))
        yield from map(opens(Path(name)), parts)


def overlap_table(before: dict[str, TypeSets], after: dict[str, TypeSets], threshold: float) -> Any:
    """A table of SPLIT_OVERLAP_SCHEMA from the items of each split; all of them number their words alike."""
    rows = [
        _row(time, split, other, best_partners(_looked_for(sets[split]), sets[other]).score, threshold)
        for time, sets in (("before", before), ("after", after))
        for split, other in PAIRS
    ]
    return pa.Table.from_pylist(rows, schema=SPLIT_OVERLAP_SCHEMA)


def overlap_of_pairs(
    kept: dict[str, Any], dropped: dict[str, Any], threshold: float = THRESHOLD, share: Share = alone
) -> Any:
    """The same from the pairs of each split; an item is a dialogue: the words of all its pairs.

    kept, dropped: tables with the columns dialogue, source and target. Before the cleaning there were both. share: who
    computes the parts.
    """
    numbers = {split: _dialogue_numbers(kept[split], dropped[split]) for split in kept}
    parts = [part for split in numbers for part in _parts(split, numbers[split], kept[split], dropped[split])]
    highest = {split: np.zeros((len(_searches(split)), MAX_ITEMS)) for split in numbers}
    for part, found in zip(parts, share(partial(_lay_out, kept, dropped, numbers), parts, _opens), strict=True):
        np.maximum(highest[part.split], found, out=highest[part.split])
    rows = []
    for time, is_after in (("before", False), ("after", True)):
        for split, other in PAIRS:
            of_split = numbers[split][: kept[split].num_rows] if is_after else numbers[split]
            scores = highest[other][_searches(other).index((split, is_after))]
            rows.append(_row(time, split, other, scores[: len(_chosen(_num_dialogues(of_split)))], threshold))
    return pa.Table.from_pylist(rows, schema=SPLIT_OVERLAP_SCHEMA)


def _row(time: str, split: str, other: str, scores: Any, threshold: float) -> dict[str, Any]:
    overlapping = int((scores > threshold).sum())
    return {
        "time": time,
        "split": split,
        "other": other,
        "items": len(scores),
        "overlapping": overlapping,
        "share": overlapping / len(scores) if len(scores) else None,
        "threshold": threshold,
    }


def _chosen(num_items: int) -> Any:
    """The items that are looked for: evenly over the whole split, the same ones each time."""
    if num_items <= MAX_ITEMS:
        return np.arange(num_items)
    return np.linspace(0, num_items - 1, MAX_ITEMS).astype(np.int64)


def _looked_for(items: TypeSets) -> TypeSets:
    return items if len(items) <= MAX_ITEMS else items.take(_chosen(len(items)))


def _searches(other: str) -> list[tuple[str, bool]]:
    """What is looked for in a split: which split's dialogues, and whether those after the cleaning."""
    return [(split, is_after) for split, where in PAIRS if where == other for is_after in (False, True)]


def _parts(split: str, numbers: Any, kept: Any, dropped: Any) -> list[Part]:
    """A split that something is looked for in, cut between dialogues."""
    if not len(numbers) or not _searches(split):
        return []
    bytes_of_row = np.concatenate(
        [
            np.zeros(0),
            *(
                np.add(*(pc.binary_length(table[side]).to_numpy() for side in ("source", "target")))
                for table in (kept, dropped)
            ),
        ]
    )
    end_bytes = np.cumsum(np.bincount(numbers, weights=bytes_of_row))
    of_part = np.stack([end_bytes // PART_BYTES, np.arange(len(end_bytes)) // CHUNK_ITEMS])
    edges = np.flatnonzero(np.diff(of_part, axis=1).any(axis=0)) + 1
    starts = [0, *edges.tolist(), len(end_bytes)]
    return [Part(split, first, last) for first, last in pairwise(starts)]


def _lay_out(kept: dict[str, Any], dropped: dict[str, Any], numbers: dict[str, Any], directory: Path) -> None:
    """A file for each split, all its pairs, for many processes to map into memory."""
    for split in kept:
        done = 0
        with pa.OSFile(str(_file(directory, split)), "wb") as sink, pa.ipc.new_file(sink, _FILE_SCHEMA) as writer:
            for table, is_kept in ((kept[split], True), (dropped[split], False)):
                for batch in table.select(["source", "target"]).to_batches(max_chunksize=10_000):
                    dialogues = pa.array(numbers[split][done : done + batch.num_rows])
                    columns = [dialogues, pa.repeat(is_kept, batch.num_rows), *batch.columns]
                    writer.write_batch(pa.record_batch(columns, schema=_FILE_SCHEMA))
                    done += batch.num_rows


def _opens(directory: Path) -> Work:
    """The dialogues that are looked for, read once; then what finds them in a part."""
    splits = {
        split: _Split(_file(directory, split)) for split in dict.fromkeys(name for pair in PAIRS for name in pair)
    }
    words = numbered()
    looked_for: dict[tuple[str, bool], TypeSets] = {}
    for split in dict.fromkeys(split for split, _ in PAIRS):
        chosen = {is_after: _chosen(number) for is_after, number in splits[split].num_dialogues.items()}
        rows = splits[split].rows(np.union1d(*chosen.values()), words)
        looked_for |= {(split, is_after): rows.dialogues(each, is_after) for is_after, each in chosen.items()}

    def work(part: Part) -> Any:
        split = splits[part.split]
        rows = split.rows(np.arange(part.first, part.last), numbered(words))  # its own words are forgotten after it
        others = {
            is_after: rows.dialogues(np.arange(part.first, min(part.last, number)), is_after)
            for is_after, number in split.num_dialogues.items()
        }
        found = np.zeros((len(_searches(part.split)), MAX_ITEMS))
        for row, (name, is_after) in enumerate(_searches(part.split)):
            items = looked_for[name, is_after]
            found[row, : len(items)] = best_partners(items, others[is_after]).score
        return found

    return work


class _Split:
    """The pairs of a split, mapped into memory from its file."""

    def __init__(self, path: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._dialogue, self._kept = (self._table[name].to_numpy() for name in ("dialogue", "kept"))
        # before the cleaning, and after it: the first ones, by their numbers
        self.num_dialogues = {False: _num_dialogues(self._dialogue), True: _num_dialogues(self._dialogue[self._kept])}

    def rows(self, chosen: Any, numbers: defaultdict[str, int]) -> _Rows:
        """The pairs of some dialogues, in word types."""
        wanted = np.isin(self._dialogue, chosen)
        sets = type_sets(_texts(self._table.filter(pa.array(wanted))), numbers=numbers)
        return _Rows(self._dialogue[wanted], self._kept[wanted], sets)


@dataclass(frozen=True)
class _Rows:
    """Some pairs: each one's dialogue, whether the cleaning keeps it, its word types."""

    dialogue: Any
    kept: Any
    sets: TypeSets

    def dialogues(self, chosen: Any, is_after: bool) -> TypeSets:
        """The word types of some dialogues, given in rising order."""
        wanted = np.flatnonzero(np.isin(self.dialogue, chosen) & (self.kept | (not is_after)))
        return merge(self.sets.take(wanted), np.searchsorted(chosen, self.dialogue[wanted]))


def _file(directory: Path, split: str) -> Path:
    return directory / f"pairs-{split}.arrow"


def _texts(table: Any) -> Iterator[tuple[str, str]]:
    for batch in table.select(["source", "target"]).to_batches(max_chunksize=10_000):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _dialogue_numbers(kept: Any, dropped: Any) -> Any:
    """For each row, those that are kept first, the number of its dialogue, from 0 in order of first occurrence.

    So the dialogues that the cleaning leaves have the first numbers.
    """
    names = pa.chunked_array([*kept["dialogue"].chunks, *dropped["dialogue"].chunks], pa.string())
    return pc.dictionary_encode(names.combine_chunks()).indices.to_numpy().astype(np.int64)


def _num_dialogues(numbers: Any) -> int:
    return int(numbers.max()) + 1 if len(numbers) else 0
