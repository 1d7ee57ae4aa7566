"""Longest common subsequence and edit distance of two token sequences, a row of the table at a time.

The rows of both tables rise or fall by at most one from column to column, so a row fits into the bits of one integer,
and the next row is a few operations on it. Python's integers are as long as they must be. The full tables are the
oracle in tests/kd_core/metrics/test_alignment.py.

Shape legend: M tokens of the first sequence (rows), N of the second (columns: bit j is token j).
"""

from collections.abc import Hashable, Sequence

Tokens = Sequence[Hashable]


def lcs_length(first: Tokens, second: Tokens) -> int:
    """Number of tokens in the longest common subsequence. Source: Hyyrö (2004), bit-parallel LCS length."""
    return len(second) - lcs_rows(first, second)[-1].bit_count()


def lcs_positions(first: Tokens, second: Tokens) -> list[int]:
    """Where the tokens of one longest common subsequence stand in `first`, rising.

    Of several, the one that rouge-score finds going back from the ends: two equal tokens are matched, else the step is
    to the neighbour with the longer subsequence, and between equals a token of `first` is left out.
    """
    rows = lcs_rows(first, second)

    def length(i: int, j: int) -> int:
        return j - (rows[i] & ((1 << j) - 1)).bit_count()

    positions: list[int] = []
    i, j = len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            positions.append(i)
        elif length(i, j - 1) > length(i - 1, j):
            j -= 1
        else:
            i -= 1
    return positions[::-1]


def lcs_rows(first: Tokens, second: Tokens) -> list[int]:
    """M + 1 rows of the table. In row i, bit j is 0 where the length for first[:i] grows with second[j]."""
    places, everywhere = _places(second), (1 << len(second)) - 1
    rows = [everywhere]
    for token in first:
        row = rows[-1]
        matched = row & places.get(token, 0)
        rows.append(((row + matched) | (row - matched)) & everywhere)
    return rows


def edit_distance(first: Tokens, second: Tokens) -> int:
    """Fewest insertions, deletions and substitutions that make one of the other (Levenshtein).

    Source: Myers (1999) in the form of Hyyrö (2003): `up` and `down` are the columns where a row of the table rises or
    falls, `right` and `left` those where it changes from one row to the next.
    """
    if not second:
        return len(first)
    places, everywhere, last = _places(second), (1 << len(second)) - 1, 1 << (len(second) - 1)
    up, down, distance = everywhere, 0, len(second)
    for token in first:
        equal = places.get(token, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        right, left = down | ~(diagonal | up), up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = (right << 1) | 1, left << 1
        up, down = (left | ~(diagonal | right)) & everywhere, right & diagonal & everywhere
    return distance


def _places(tokens: Tokens) -> dict[Hashable, int]:
    """Token -> the bits of its positions."""
    places: dict[Hashable, int] = {}
    for j, token in enumerate(tokens):
        places[token] = places.get(token, 0) | 1 << j
    return places
