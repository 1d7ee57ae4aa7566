"""ROUGE-1, -2, -L and -Lsum: mean F1 over outputs, on a scale of 0 to 100.

The same numbers as Google's rouge-score with its Porter stemmer, from its own tokens, without its quadratic tables in
Python (tests/kd_core/metrics/test_rouge.py asserts it, pair by pair). Its tokens are runs of a to z and 0 to 9: other
scripts count for nothing, which the note says where they do; `tokenizer: unicode` reads them all.

Shape legend: N outputs.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from types import SimpleNamespace
from typing import Literal, get_args

import numpy as np
from nltk.stem.porter import PorterStemmer
from rouge_score.tokenize import tokenize

from kd_core.metrics.alignment import lcs_length, lcs_positions
from kd_core.metrics.bootstrap import Measure
from kd_core.metrics.ratios import ratio
from kd_core.metrics.scripts import SUBSTANTIAL, unicode_words, unread_by_ascii

RougeTokenizer = Literal["ascii", "unicode"]
STEMMER = SimpleNamespace(stem=cache(PorterStemmer().stem))  # a word is stemmed once, however often it is written
SENTENCE_END = re.compile(r"\n|(?<=[.!?])\s+")
SENTENCE_END_UNICODE = re.compile(r"\n|(?<=[.!?؟۔।॥])\s+|(?<=[。！？｡])\s*")  # Chinese and Japanese leave no space
SENTENCES = "; sentences end at a line break, or at . ! ? before white space"
SENTENCES_UNICODE = "; sentences end at a line break, at . ! ? or another script's before white space, or at 。！？"

Tokens = list[str]


@dataclass(frozen=True, kw_only=True)
class RougeSettings:
    """How ROUGE reads a text."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    # ascii: rouge-score's, which published numbers are of. unicode: words of every script (kd_core.metrics.scripts)
    tokenizer: RougeTokenizer = "ascii"

    def __post_init__(self) -> None:
        if self.tokenizer not in get_args(RougeTokenizer):
            raise ValueError(f"tokenizer must be ascii or unicode, got {self.tokenizer!r}")


ASCII = RougeSettings()


def rouge_tokens(text: str) -> Tokens:
    """rouge-score's tokens: lower-cased ASCII letters and digits, words of more than 3 letters stemmed."""
    tokens: Tokens = tokenize(text, STEMMER)
    return tokens


def unicode_tokens(text: str) -> Tokens:
    """Words of every script, lower-cased; English ones stemmed as rouge-score does: on ASCII, the same tokens."""
    return [STEMMER.stem(word) if word.isascii() and len(word) > 3 else word for word in unicode_words(text)]


def sentence_tokens(text: str, tokenizer: RougeTokenizer = "ascii") -> list[Tokens]:
    """The tokens of each sentence that has any.

    [ours] Sentences end where a line does, or after . ! ? before white space (and at other scripts' marks, where these
    are read). The usual choice, NLTK's punkt, is a model that has to be downloaded; a text without line breaks, as
    models with a SentencePiece vocabulary write, would otherwise be one sentence, and rougeLsum the same as rougeL.
    """
    end = SENTENCE_END if tokenizer == "ascii" else SENTENCE_END_UNICODE
    return [tokens for sentence in end.split(text) if (tokens := _tokens_of(tokenizer)(sentence))]


def rouge(predictions: Sequence[str], references: Sequence[str], settings: RougeSettings = ASCII) -> list[Measure]:
    """`rouge_1`, `rouge_2`, `rouge_l` (sentence level: the whole text as one) and `rouge_lsum` (summary level).

    An output or a reference too short for the n-gram has F1 = 0, as in rouge-score; where no reference is long enough,
    the metric is undefined. The notes say which tokens these are, and what part of the references they leave out.
    Source: Lin (2004); METHODS.md section 1, Metrics.
    """
    tokenizer, tokens = settings.tokenizer, _tokens_of(settings.tokenizer)
    pairs = [(tokens(p), tokens(r)) for p, r in zip(predictions, references, strict=True)]
    longest = max((len(reference) for _, reference in pairs), default=0)
    by_sentence = [
        (sentence_tokens(p, tokenizer), sentence_tokens(r, tokenizer))
        for p, r in zip(predictions, references, strict=True)
    ]
    note, unread = _note(tokenizer), ""
    lost = unread_by_ascii(references) if tokenizer == "ascii" else 0.0
    if lost >= SUBSTANTIAL:
        unread = f"; {lost:.0f} % of the references' words hold characters other than a to z and 0 to 9, the only ones "
        unread += "that are read here: see rouge.tokenizer"
    sentences = SENTENCES if tokenizer == "ascii" else SENTENCES_UNICODE
    one, two = (f"no reference has {least}{unread}" for least in ("a word", "2 words"))
    return [
        _measure("rouge_1", [ngram_f1(*pair, 1) for pair in pairs], longest >= 1, one, note + unread),
        _measure("rouge_2", [ngram_f1(*pair, 2) for pair in pairs], longest >= 2, two, note + unread),
        _measure("rouge_l", [lcs_f1(*pair) for pair in pairs], longest >= 1, one, note + unread),
        _measure(
            "rouge_lsum", [summary_f1(*pair) for pair in by_sentence], longest >= 1, one, note + sentences + unread
        ),
    ]


def _tokens_of(tokenizer: RougeTokenizer) -> Callable[[str], Tokens]:
    return rouge_tokens if tokenizer == "ascii" else unicode_tokens


def _note(tokenizer: RougeTokenizer) -> str:
    if tokenizer == "ascii":
        return f"mean F1, as rouge-score {version('rouge-score')} with stemmer"
    return "mean F1, as rouge-score with stemmer, but of words of every script (tokenizer unicode)"


def ngram_f1(prediction: Tokens, reference: Tokens, order: int) -> float:
    """F1 of the n-grams that both have, each as often as in the text that has it less often."""
    ours, theirs = (Counter(zip(*(text[i:] for i in range(order)), strict=False)) for text in (prediction, reference))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def lcs_f1(prediction: Tokens, reference: Tokens) -> float:
    """F1 of the longest common subsequence."""
    return _f1(lcs_length(reference, prediction), len(prediction), len(reference))


def summary_f1(prediction: Sequence[Tokens], reference: Sequence[Tokens]) -> float:
    """F1 of the union of each reference sentence's longest common subsequences with all sentences of the output.

    A token counts at most as often as both texts have it (ROUGE 1.5.5).
    """
    left = Counter(token for sentence in prediction for token in sentence)
    left &= Counter(token for sentence in reference for token in sentence)
    hits = 0
    for sentence in reference:
        matched = {position for other in prediction for position in lcs_positions(sentence, other)}
        for position in sorted(matched):
            if left[sentence[position]] > 0:
                left[sentence[position]] -= 1
                hits += 1
    return _f1(hits, sum(map(len, prediction)), sum(map(len, reference)))


def _f1(hits: int, num_predicted: int, num_reference: int) -> float:
    """Harmonic mean of precision and recall: 2 hits / (predicted + reference)."""
    return 2 * hits / (num_predicted + num_reference) if hits else 0.0


def _measure(metric: str, f1_N: list[float], defined: bool, undefined: str, note: str) -> Measure:
    percent_N = 100 * np.array(f1_N)
    return ratio(metric, "points", percent_N, np.full_like(percent_N, defined), undefined, note)
