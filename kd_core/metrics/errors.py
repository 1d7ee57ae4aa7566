"""Error rates of outputs that have one right answer, such as the phonemes of a word.

Shape legend: N outputs.
"""

from collections.abc import Sequence

from kd_core.metrics.alignment import edit_distance
from kd_core.metrics.bootstrap import Measure
from kd_core.metrics.ratios import mean, ratio


def phoneme_error_rate(predictions: Sequence[str], references: Sequence[str]) -> Measure:
    """`per`: edit distances summed over outputs, divided by all tokens of the references, in per cent.

    Tokens stand between white space: phonemes, here. Above 100 where outputs are much too long. Undefined where every
    reference is empty.
    """
    pairs = [(p.split(), r.split()) for p, r in zip(predictions, references, strict=True)]
    edits_N = [100.0 * edit_distance(*pair) for pair in pairs]
    return ratio("per", "%", edits_N, [len(reference) for _, reference in pairs], "every reference is empty")


def word_error_rate(predictions: Sequence[str], references: Sequence[str]) -> Measure:
    """`wer`: the share of outputs that are not exactly the reference, in per cent.

    As in grapheme-to-phoneme work, where an output is the pronunciation of one word; not the edit distance in words of
    speech recognition. White space at the ends and repeated white space make no difference.
    """
    wrong_N = [100.0 * (p.split() != r.split()) for p, r in zip(predictions, references, strict=True)]
    return mean("wer", "%", wrong_N)
