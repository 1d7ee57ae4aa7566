"""Signs that a model has collapsed, on tokens or words: outputs that are all the same, or that repeat themselves."""

from collections import Counter
from collections.abc import Hashable, Sequence

Tokens = Sequence[Hashable]


def equal_to_another(outputs: Sequence[Tokens]) -> list[bool]:
    """Whether another of the outputs is the same, for each of them. Two empty outputs are the same."""
    times = Counter(tuple(each) for each in outputs)
    return [times[tuple(each)] > 1 for each in outputs]


def repeated_ngrams(tokens: Tokens, n: int = 4) -> tuple[int, int]:
    """How many n-grams stood in an output before, and how many it has. Their ratio: rep-n (Welleck et al. 2020)."""
    ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(ngrams) - len(set(ngrams)), len(ngrams)
