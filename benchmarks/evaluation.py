"""Evaluating 10,000 outputs with every metric and 1,000 resamples; the reference is rouge-score alone, with none.

CPU seconds of the process, all its threads: the wall clock of one core. The reference scores every tenth pair, and its
seconds count tenfold.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from benchmarks.common import line
from benchmarks.demo import demo_parameters
from data.reading.specs import DatasetSettings
from data.sources import load
from kd_core.metrics.outputs import ALL_METRICS, Outputs, References, evaluate_outputs
from kd_core.metrics.rouge import rouge

ROWS, SUMMARY_WORDS, RESAMPLES, STEP = 10_000, 60, 1000, 10
TYPES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}


def run() -> Iterator[dict[str, Any]]:
    """Dialogue replies, then texts as long as a summary made of them."""
    settings = DatasetSettings(**demo_parameters()["dataset"] | {"max_source_words": 100, "max_target_words": 100})
    corpus = load(settings, 0, ROWS)
    predictions, references = (corpus.train[name].to_pylist() for name in ("source", "target"))
    yield measure("replies", predictions, references)
    yield measure("summaries", *(summaries(texts) for texts in (predictions, references)))


def summaries(texts: list[str]) -> list[str]:
    """As many texts of SUMMARY_WORDS words, each a stretch of all of them joined."""
    words = " ".join(texts).split()
    starts = np.linspace(0, len(words) - SUMMARY_WORDS, len(texts)).astype(int)
    return [" ".join(words[start : start + SUMMARY_WORDS]) for start in starts]


def measure(what: str, predictions: list[str], references: list[str]) -> dict[str, Any]:
    """One line, after a check that ROUGE is rouge-score's."""
    number = len(predictions)
    lengths = np.array([len(text.split()) for text in predictions], dtype=np.float64)
    outputs = Outputs(
        predictions=predictions,
        num_tokens=lengths,
        truncated=lengths > SUMMARY_WORDS,
        reward_sum=-lengths,
        reward_count=lengths,
    )
    scorer, some = RougeScorer(list(TYPES.values()), use_stemmer=True), range(0, number, STEP)
    pairs = [(references[i].replace("\n", " "), predictions[i].replace("\n", " ")) for i in some]
    check(scorer, pairs)
    ours = cpu_seconds(
        lambda: evaluate_outputs(outputs, References(references, resamples=RESAMPLES), ALL_METRICS),
    )
    theirs = cpu_seconds(lambda: [scorer.score(*pair) for pair in pairs]) * number / len(pairs)
    words = float(np.mean([len(text.split()) for text in predictions + references]))
    sizes = {"what": what, "outputs": number, "words": round(words, 1), "resamples": RESAMPLES}
    return line("evaluation", ours, theirs, "CPU s", reference_is="rouge-score, no resamples", **sizes)


def check(scorer: RougeScorer, pairs: list[tuple[str, str]]) -> None:
    """Raise AssertionError unless rouge_1, rouge_2 and rouge_l are rouge-score's. (Its rougeLsum needs line breaks.)"""
    scores = [scorer.score(*pair) for pair in pairs]
    measures = {each.metric: each for each in rouge([p for _, p in pairs], [r for r, _ in pairs])}
    for metric in ("rouge_1", "rouge_2", "rouge_l"):
        expected = [100 * score[TYPES[metric]].fmeasure for score in scores]
        np.testing.assert_allclose(measures[metric].columns_NK[:, 0], expected, rtol=1e-9)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun
