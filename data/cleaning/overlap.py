"""How much two items share: the Dice coefficient of their sets of word types, over all pairs at once.

An item is a dialogue, a movie or a row. Items are the rows of a sparse matrix X, 1 where a word occurs in an item, and
the types that each two share are the entries of X Xᵀ. Words that many items have hold most of that product's work in
few of its columns: they are multiplied as a dense matrix; all others through posting lists. No pair is visited in
Python, and no more than a block of the product exists at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from data.cleaning.pairs import token_counts

COMMON = (
    0.02  # a word of a larger share of the items is cheaper in the dense product, where it costs items² / BLAS rate
)
CHUNK_ITEMS = 16_384  # of the right-hand side at a time: its common words are a dense float32 matrix
BLOCK_ITEMS = 128  # of the left-hand side at a time: 16 MB of float64 scores against a whole chunk


@dataclass(frozen=True)
class TypeSets:
    """The word types of N items, as numbers: those of item i are `words[starts[i] : starts[i + 1]]`, each once."""

    words: Any  # int32
    starts: Any  # int64, (N + 1,)
    num_words: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def sizes(self) -> Any:
        """Types of each item: (N,) int64."""
        return np.diff(self.starts)

    def items(self) -> Any:
        """The item that each entry of `words` belongs to: int64."""
        return np.repeat(np.arange(len(self)), self.sizes())

    def take(self, chosen: Any) -> TypeSets:
        """Some of the items, by position, in that order."""
        chosen = np.asarray(chosen, dtype=np.int64)
        sizes = self.sizes()[chosen]
        return TypeSets(self.words[_ranges(self.starts[chosen], sizes)], _starts(sizes), self.num_words)

    def only(self, wanted: Any) -> TypeSets:
        """The same items with only the words for which `wanted`, (num_words,) bool, is true."""
        stay = wanted[self.words]
        return TypeSets(self.words[stay], _starts(np.bincount(self.items()[stay], minlength=len(self))), self.num_words)


@dataclass(frozen=True)
class Best:
    """Each item's highest score and the first item that it has it with; -1 where it shares nothing with any."""

    partner: Any  # int64
    score: Any  # float64, in [0, 1]


def numbered(known: Mapping[str, int] | None = None) -> defaultdict[str, int]:
    """Word -> its number, and the next one for each that is new."""
    known = known or {}
    return defaultdict(count(len(known)).__next__, known)  # not its own length: a circle stays until it is collected


def type_sets(
    items: Iterable[Iterable[str]], vocabulary: int | None = None, numbers: defaultdict[str, int] | None = None
) -> TypeSets:
    """The types of each item's texts; with `vocabulary`, only that many words: the most frequent over all items.

    Of equally frequent words those that occur first are taken. Tokens are those of `data.cleaning.pairs.tokens`.
    numbers: those that other sets have, as `numbered`; new words are added.
    """
    numbers = numbered() if numbers is None else numbers
    words, counts, sizes = [], [], []
    for texts in items:
        counted = token_counts(texts)
        sizes.append(len(counted))
        words.append(np.fromiter(map(numbers.__getitem__, counted), np.int32, len(counted)))
        counts.append(np.fromiter(counted.values(), np.int32, len(counted)))
    sets = TypeSets(_joined(words), _starts(np.array(sizes, dtype=np.int64)), len(numbers))
    if vocabulary is None or vocabulary >= len(numbers):
        return sets
    frequency = np.bincount(sets.words, weights=_joined(counts), minlength=len(numbers))
    wanted = np.zeros(len(numbers), dtype=bool)
    wanted[np.argsort(-frequency, kind="stable")[:vocabulary]] = True
    return sets.only(wanted)


def merge(sets: TypeSets, group: Any) -> TypeSets:
    """The unions of the sets of each group; `group`, (N,) int64, numbers them from 0 without a gap."""
    num_groups = int(group.max()) + 1 if len(group) else 0
    if num_groups == len(group):
        return sets.take(np.argsort(group))
    entries = np.unique(group[sets.items()] * sets.num_words + sets.words)
    sizes = np.bincount(entries // sets.num_words, minlength=num_groups)
    return TypeSets((entries % sets.num_words).astype(np.int32), _starts(sizes), sets.num_words)


def dice(shared: Any, size: Any, other_size: Any) -> Any:
    """Dice coefficient of two sets: 2 |A ∩ B| / (|A| + |B|), 0 where both are empty. Any shapes that broadcast.

    Float64, so that a score that is exactly a threshold in decimals compares equal to it: 4/5 is not above 0.8.
    Source: Wen et al. 2022, the overlap ratio of two items by unigrams.
    """
    total = np.array(size + other_size, dtype=np.float64)
    return np.divide(2 * shared, np.maximum(total, 1, out=total), out=total)


def best_partners(items: TypeSets, others: TypeSets | None = None) -> Best:
    """For each item the highest Dice score with any of the others; without `others`, with any item but itself.

    Both sides number their words alike.
    """
    own = others is None
    right_side = items if others is None else others
    score, partner = np.zeros(len(items)), np.full(len(items), -1, dtype=np.int64)
    sizes, right_sizes = items.sizes(), right_side.sizes()
    common = np.bincount(right_side.words, minlength=right_side.num_words) > COMMON * len(right_side)
    for first in range(0, len(right_side), CHUNK_ITEMS):
        chunk = np.arange(first, min(first + CHUNK_ITEMS, len(right_side)))
        right = _RightSide(right_side.take(chunk), common)
        for begin in range(0, len(items), BLOCK_ITEMS):
            block = np.arange(begin, min(begin + BLOCK_ITEMS, len(items)))
            scores = dice(right.shared(items.take(block)), sizes[block, None], right_sizes[None, chunk])
            if own:
                rows, columns = np.nonzero(block[:, None] == chunk[None, :])
                scores[rows, columns] = 0.0
            found = scores.argmax(axis=1)
            highest = scores[np.arange(len(block)), found]
            better = highest > score[block]  # strictly: of equal partners the first stays
            score[block[better]], partner[block[better]] = highest[better], chunk[found[better]]
    return Best(partner, score)


class _RightSide:
    """A chunk of items, ready to be multiplied with many blocks."""

    def __init__(self, items: TypeSets, common: Any) -> None:
        self._rare_words = ~common
        self._column = np.cumsum(common) - 1  # of a common word in the dense matrices
        self._common = common
        self._dense = self._dense_rows(items)
        self._num_items = len(items)
        rare = items.only(self._rare_words)
        self._postings = rare.items()[np.argsort(rare.words, kind="stable")]
        self._posting_starts = _starts(np.bincount(rare.words, minlength=items.num_words))

    def shared(self, block: TypeSets) -> Any:
        """Number of types that each item of the block shares with each of the chunk: float32, exact below 2^24."""
        counts = self._dense_rows(block) @ self._dense.T
        rare = block.only(self._rare_words)
        begin, end = self._posting_starts[rare.words], self._posting_starts[rare.words + 1]
        rows = np.repeat(rare.items() * self._num_items, end - begin)
        np.add.at(counts.reshape(-1), rows + self._postings[_ranges(begin, end - begin)], np.float32(1))
        return counts

    def _dense_rows(self, items: TypeSets) -> Any:
        common = items.only(self._common)
        dense = np.zeros((len(items), int(self._common.sum())), dtype=np.float32)
        dense[common.items(), self._column[common.words]] = 1
        return dense


def _starts(sizes: Any) -> Any:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _joined(arrays: list[Any]) -> Any:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)


def _ranges(begin: Any, length: Any) -> Any:
    """The integers of several ranges, one range after another: begin[i], …, begin[i] + length[i] - 1."""
    ends = np.cumsum(length)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begin - (ends - length), length)
