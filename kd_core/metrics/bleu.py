"""Corpus BLEU in two tokenisations, from n-gram counts of each output.

`bleu_2`, `bleu_4`: comparable with the LLMR paper's. `sacrebleu_2`, `sacrebleu_4`: stock sacreBLEU (mixed case,
exponential smoothing; 13a unless another of its tokenizers is asked for), of maximum order 2 and 4. All on a scale of 0
to 100.

Shape legend: N outputs, S samples, K columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from kd_core.metrics.bootstrap import Measure
from kd_core.metrics.intervals import Floats
from kd_core.metrics.scripts import unspaced_remark

ORDERS = (2, 4)
LONGEST = max(ORDERS)
SPACED = ("13a", "intl", "none")  # sacreBLEU's tokenizers that find words by the spaces between them


@dataclass(frozen=True, kw_only=True)
class SacreBleuSettings:
    """How sacreBLEU reads a text; the tokenizer is in its signature, and numbers of two of them do not compare."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    tokenizer: str = "13a"  # any of sacreBLEU's: zh and ja-mecab know their languages, char needs no words, …

    def __post_init__(self) -> None:
        if self.tokenizer not in BLEU.TOKENIZERS:
            raise ValueError(f"tokenizer must be one of {', '.join(BLEU.TOKENIZERS)}, got {self.tokenizer!r}")


STOCK = SacreBleuSettings()


def paper_bleu(
    predicted: Sequence[Sequence[str]], references: Sequence[Sequence[str]], remark: str = ""
) -> list[Measure]:
    """`bleu_2` and `bleu_4` of outputs and references in words (kd_core.metrics.words); `remark` ends the note.

    Corpus level, uniform weights, no smoothing: sacreBLEU on text that was tokenised before. Source: METHODS.md
    section 1, [code]: NLTK's corpus_bleu, and so with its one oddity: an output too short for an n-gram of some order
    counts as having one, which no reference has. (Short replies are common in dialogue, and BLEU-4 is lower for it.)
    Where no n-gram of some order matches, this is 0 and NLTK's a number near it.
    """
    joined = [" ".join(tokens) for tokens in predicted], [" ".join(tokens) for tokens in references]
    settings = {"tokenize": "none", "force": True, "smooth_method": "none"}
    counts_NK = _counts(*joined, settings)
    about = "lower-cased wordpunct tokens, too short an output counts as one n-gram (NLTK), "
    return [_measure(f"bleu_{order}", order, counts_NK, settings, about, remark, least=1) for order in ORDERS]


def stock_bleu(
    predictions: Sequence[str], references: Sequence[str], settings: SacreBleuSettings = STOCK
) -> list[Measure]:
    """`sacrebleu_2` and `sacrebleu_4` of raw texts, with sacreBLEU's signature as the note."""
    stock: dict[str, object] = {"tokenize": settings.tokenizer}
    counts_NK = _counts(predictions, references, stock)
    remark = unspaced_remark(references) if settings.tokenizer in SPACED else ""
    remark += ": see sacrebleu.tokenizer" if remark else ""
    return [_measure(f"sacrebleu_{order}", order, counts_NK, stock, "", remark, least=0) for order in ORDERS]


def _counts(predictions: Sequence[str], references: Sequence[str], settings: dict[str, object]) -> Floats:
    """Per output: its length, its reference's, matched n-grams of order 1 to 4, all its n-grams of order 1 to 4."""
    counter = BLEU(**settings, effective_order=True)  # silences a warning about sentence scores; counts are the same
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        counted = counter.sentence_score(prediction, [reference])
        rows.append([counted.sys_len, counted.ref_len, *counted.counts, *counted.totals])
    return np.array(rows, dtype=np.float64)


def _measure(
    metric: str, order: int, counts_NK: Floats, settings: dict[str, object], about: str, remark: str, least: int
) -> Measure:
    """BLEU of maximum order `order`; each output counts as having `least` n-grams of each order, or more."""
    stock = BLEU(**settings, max_ngram_order=order)
    stock.corpus_score([""], [[""]])  # it has no signature before it has seen how many references there are
    lengths_N2, matched_NK, all_NK = np.split(counts_NK, [2, 2 + LONGEST], axis=1)
    longest_N1 = all_NK[:, order - 1 : order]
    longest_in_reference_N1 = (lengths_N2[:, 1:] - order + 1).clip(min=0)
    counted_NK = all_NK[:, :order].clip(min=least)
    columns = (longest_N1, longest_in_reference_N1, lengths_N2, matched_NK[:, :order], counted_NK)

    def score(sums_SK: Floats) -> Floats:
        # without n-grams of the highest order on both sides sacreBLEU says 0, which would mean something else
        return np.array([_bleu(sums[2:], stock) if sums[:2].all() else np.nan for sums in sums_SK])

    return Measure(
        metric=metric,
        unit="points",
        columns_NK=np.concatenate(columns, axis=1),
        score=score,
        undefined=f"no {'reference' if longest_N1.any() else 'output'} has {order} tokens",
        note="; ".join(each for each in (f"{about}order {order}, {stock.get_signature()}", remark) if each),
    )


def _bleu(sums: Floats, stock: BLEU) -> float:
    order = stock.max_ngram_order
    lengths, matched, counted = np.split(sums.astype(np.int64), [2, 2 + order])
    computed = BLEU.compute_bleu(
        matched.tolist(),
        counted.tolist(),
        *lengths.tolist(),
        smooth_method=stock.smooth_method,
        max_ngram_order=order,
    )
    return float(computed.score)
