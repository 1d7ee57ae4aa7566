"""LCS and edit distance in bits, against the full tables."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import lcs_ind

from kd_core.metrics.alignment import edit_distance, lcs_length, lcs_positions

# few different tokens, so that there are many common subsequences to choose from; longer than a machine word
sequences = st.lists(st.sampled_from("abc"), max_size=9) | st.lists(st.sampled_from("abcdefgh"), max_size=80)


def table(first: list[str], second: list[str], *, edits: bool) -> int:
    """The recursion as it is written in textbooks: the edit distance, or the length of the LCS."""
    cells = [[(i + j if edits else 0) for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            if edits:
                cells[i][j] = min(cells[i - 1][j] + 1, cells[i][j - 1] + 1, cells[i - 1][j - 1] + (a != b))
            else:
                cells[i][j] = cells[i - 1][j - 1] + 1 if a == b else max(cells[i - 1][j], cells[i][j - 1])
    return cells[-1][-1]


@given(sequences, sequences)
@settings(max_examples=300)
def test_length_and_distance_are_those_of_the_full_tables(first: list[str], second: list[str]) -> None:
    assert lcs_length(first, second) == table(first, second, edits=False)
    assert edit_distance(first, second) == table(first, second, edits=True)


@given(sequences, sequences)
@settings(max_examples=300)
def test_the_subsequence_is_the_one_that_rouge_score_finds(first: list[str], second: list[str]) -> None:
    found = lcs_positions(first, second)
    assert found == lcs_ind(first, second)
    assert len(found) == lcs_length(first, second)


@given(sequences, sequences, sequences)
def test_edit_distance_is_a_metric(a: list[str], b: list[str], c: list[str]) -> None:
    assert edit_distance(a, a) == 0
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


@pytest.mark.parametrize(
    ("first", "second", "common", "edits"),
    [
        ("kitten", "sitting", 4, 3),  # k → s, e → i, + g; ittn
        ("abcbdab", "bdcaba", 4, None),  # bcba (Cormen et al., Introduction to Algorithms)
        ("", "abc", 0, 3),
        ("abc", "", 0, 3),
        ("", "", 0, 0),
        ("ab", "ba", 1, 2),
    ],
)
def test_by_hand(first: str, second: str, common: int, edits: int | None) -> None:
    assert lcs_length(first, second) == common
    if edits is not None:
        assert edit_distance(first, second) == edits
