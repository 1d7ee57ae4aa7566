"""The overlap search against all pairs in plain Python, with every way that the product is cut up."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cleaning import overlap
from data.cleaning.overlap import TypeSets, best_partners, dice, merge, type_sets
from data.cleaning.pairs import tokens
from tests.data.authors import authors_lines

# few words, so that shared, empty and equal items all come up; "!" is no token
ITEMS = st.lists(st.text(alphabet="ab c!", max_size=8), max_size=12)


def slow_scores(items: list[str], others: list[str]) -> list[list[Fraction]]:
    """Every pair by its sets, exactly."""
    left, right = [[set(tokens(text)) for text in texts] for texts in (items, others)]
    return [[Fraction(2 * len(a & b), len(a) + len(b)) if a or b else Fraction(0) for b in right] for a in left]


def slow_best(scores: list[list[Fraction]], own: bool) -> tuple[list[int], list[float]]:
    partners, highest = [], []
    for item, row in enumerate(scores):
        partner, best = -1, Fraction(0)
        for other, score in enumerate(row):
            if score > best and not (own and other == item):
                partner, best = other, score
        partners.append(partner)
        highest.append(float(best))
    return partners, highest


def both(items: list[str], others: list[str]) -> tuple[TypeSets, TypeSets]:
    sets = type_sets([text] for text in [*items, *others])
    return sets.take(range(len(items))), sets.take(range(len(items), len(sets)))


@pytest.mark.parametrize("common", [0.0, 0.3, 1.0])  # all words in the dense product, some, none
@pytest.mark.parametrize(("chunk", "block"), [(1, 2), (3, 1), (100, 100)])
@settings(max_examples=40)
@given(items=ITEMS, others=ITEMS)
def test_the_product_equals_all_pairs(
    items: list[str], others: list[str], common: float, chunk: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "COMMON", common)
        patch.setattr(overlap, "CHUNK_ITEMS", chunk)
        patch.setattr(overlap, "BLOCK_ITEMS", block)
        left, right = both(items, others)
        between, own = best_partners(left, right), best_partners(left)
    assert (between.partner.tolist(), between.score.tolist()) == slow_best(slow_scores(items, others), own=False)
    assert (own.partner.tolist(), own.score.tolist()) == slow_best(slow_scores(items, items), own=True)


def test_real_dialogues_have_the_scores_of_all_pairs() -> None:
    lines = random.Random(1).sample(authors_lines("dailydialog/raw_validation.txt"), 400)
    texts = [line.replace("__eou__", "") for line in lines]
    found = best_partners(type_sets([text] for text in texts))
    assert (found.partner.tolist(), found.score.tolist()) == slow_best(slow_scores(texts, texts), own=True)


def test_a_score_by_hand() -> None:
    # {a, b, c} and {b, c, d, e}: 2 · 2 / (3 + 4)
    left, right = both(["a b, C c!"], ["b c d e"])
    assert best_partners(left, right).score.tolist() == [4 / 7]


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_score_compares_with_a_decimal_as_the_fraction_does(shared: int, more: int, other_more: int) -> None:
    size, other_size = shared + more, shared + other_more
    score = dice(np.float32(shared), np.int64(size), np.int64(other_size))
    for threshold in ("0.2", "0.75", "0.8"):
        exact = size + other_size > 0 and Fraction(2 * shared, size + other_size) > Fraction(threshold)
        assert bool(score > float(threshold)) == exact


@given(ITEMS, st.integers(1, 4))
def test_a_vocabulary_is_the_most_frequent_words(items: list[str], size: int) -> None:
    found = [token for text in items for token in tokens(text)]
    words = list(dict.fromkeys(found))
    frequent = set(sorted(words, key=lambda word: -found.count(word))[:size])
    limited, whole = type_sets(([text] for text in items), size), type_sets([text] for text in items)
    wanted = [{words.index(token) for token in tokens(text) if token in frequent} for text in items]
    assert [set(limited.take([i]).words.tolist()) for i in range(len(items))] == wanted
    assert whole.sizes().tolist() == [len(set(tokens(text))) for text in items]


@given(st.lists(st.tuples(st.integers(0, 2), st.text(alphabet="ab c", max_size=5)), min_size=1))
def test_a_group_has_the_union_of_its_items_words(rows: list[tuple[int, str]]) -> None:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(group for group, _ in rows))}
    sets = type_sets([text] for _, text in rows)
    merged = merge(sets, np.array([numbers[group] for group, _ in rows]))
    for name, number in numbers.items():
        texts = [row for row, (group, _) in enumerate(rows) if group == name]
        words = merged.take([number]).words.tolist()
        assert sorted(words) == sorted(set(sets.take(texts).words.tolist()))
    assert len(merged) == len(numbers)
