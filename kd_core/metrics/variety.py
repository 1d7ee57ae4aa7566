"""Signs that a model has collapsed, on tokens or words: outputs that are all the same, or that repeat themselves.

Shape legend: N outputs.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

from kd_core.metrics.bootstrap import Measure
from kd_core.metrics.ratios import mean, ratio

Tokens = Sequence[Hashable]


def equal_to_another(outputs: Sequence[Tokens]) -> list[bool]:
    """Whether another of the outputs is the same, for each of them. Two empty outputs are the same."""
    times = Counter(tuple(each) for each in outputs)
    return [times[tuple(each)] > 1 for each in outputs]


def repeated_ngrams(tokens: Tokens, n: int = 4) -> tuple[int, int]:
    """How many n-grams stood in an output before, and how many it has. Their ratio: rep-n (Welleck et al. 2020)."""
    ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(ngrams) - len(set(ngrams)), len(ngrams)


def equal(outputs: Sequence[Tokens]) -> Measure:
    """`equal`: the share of outputs that another one equals, in per cent.

    Which these are is decided among all N outputs: a resample that draws an output twice does not make it equal to
    itself. [ours] The more outputs, the more equals each may find, so only values of equal N compare.
    """
    note = "outputs that another of these equals: of fewer outputs it would be lower; resamples draw these as they are"
    return mean("equal", "%", [100.0 * each for each in equal_to_another(outputs)], note)


def repetition(outputs: Sequence[Tokens], remark: str = "") -> Measure:
    """`repetition`: n-grams that stood in their output before / n-grams, of 4 words, summed over outputs, in per cent.

    `remark` ends the note. Source: rep-4 (Welleck et al. 2020), there within one continuation.
    """
    repeated_N, number_N = zip(*map(repeated_ngrams, outputs), strict=True)
    note = "; ".join(each for each in ("repeated 4-grams / 4-grams, within outputs", remark) if each)
    return ratio("repetition", "%", [100 * each for each in repeated_N], number_N, "no output has 4 words", note)
