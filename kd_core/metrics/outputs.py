"""All metrics of a system's outputs, with intervals.

    references = References(texts, resamples=1000, seed=0)     # tokenised, and resamples drawn, once for all systems
    seqkd = evaluate_outputs(Outputs(...), references)
    llmr = evaluate_outputs(Outputs(...), references)
    seqkd.metrics, llmr.metrics, paired_differences(llmr, seqkd)

Shape legend: N outputs, S samples (the outputs as they are, then the resamples), K columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kd_core.metrics.bleu import paper_bleu, stock_bleu
from kd_core.metrics.bootstrap import Floats, Measure, Measured, Resamples, measure_all
from kd_core.metrics.distinct import distinct, distinct_within
from kd_core.metrics.words import words


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What one system wrote for N inputs, in the order of the references, and what is known of each output.

    num_tokens: (N,), the model's tokens, the end included where there is one. truncated: (N,), whether it was cut off
    at the length limit. reward_sum, reward_count: (N,), the teacher's reward in nats summed over the tokens that were
    rewarded, and their number (0 = not rewarded); None where no teacher was asked.
    """

    predictions: Sequence[str]
    num_tokens: ArrayLike
    truncated: ArrayLike
    reward_sum: ArrayLike | None = None
    reward_count: ArrayLike | None = None


class References:
    """The references of N inputs, and the resamples that every system on them shares."""

    def __init__(self, texts: Sequence[str], *, resamples: int = 1000, seed: int = 0) -> None:
        self.texts = texts
        self.resamples = Resamples(num_outputs=len(texts), num_resamples=resamples, seed=seed)

    @cached_property
    def words(self) -> list[list[str]]:
        """Each reference in lower-cased wordpunct tokens."""
        return [words(text) for text in self.texts]


def evaluate_outputs(outputs: Outputs, references: References) -> Measured:
    """Every metric of a system's outputs: BLEU, distinct, length, share truncated, reward per token.

    Raises ValueError if the numbers of predictions, references and per-output numbers differ, or a reward is not
    finite.
    """
    num_outputs = len(references.texts)
    if len(outputs.predictions) != num_outputs:
        raise ValueError(f"there are {len(outputs.predictions)} predictions for {num_outputs} references")
    predicted = [words(text) for text in outputs.predictions]
    measures = [
        *paper_bleu(predicted, references.words),
        *stock_bleu(outputs.predictions, references.texts),
        *distinct(predicted),
        *distinct_within(predicted),
        _mean("length", "tokens", "num_tokens", outputs.num_tokens, num_outputs),
        _mean("truncated", "%", "truncated", 100 * np.asarray(outputs.truncated, dtype=np.float64), num_outputs),
        *_rewards(outputs, num_outputs),
    ]
    return measure_all(measures, references.resamples)


def _rewards(outputs: Outputs, num_outputs: int) -> list[Measure]:
    """`reward`: per token, each the same, whatever output it is in; `gain`: per output, what LLMR maximises (Eq. 1)."""
    if (outputs.reward_sum is None) != (outputs.reward_count is None):
        raise ValueError("reward_sum and reward_count must be given together, got one of them")
    unrewarded = np.zeros(num_outputs)
    total_N = _numbers("reward_sum", unrewarded if outputs.reward_sum is None else outputs.reward_sum, num_outputs)
    count_N = _numbers(
        "reward_count", unrewarded if outputs.reward_count is None else outputs.reward_count, num_outputs
    )
    none = "no output was rewarded"
    return [
        _ratio("reward", "nats/token", total_N, count_N, none),
        _ratio("gain", "nats/output", total_N, (count_N > 0).astype(np.float64), none),
    ]


def _mean(metric: str, unit: str, argument: str, values: ArrayLike, num_outputs: int) -> Measure:
    """The mean over outputs."""
    value_N = _numbers(argument, values, num_outputs)
    return _ratio(metric, unit, value_N, np.ones(num_outputs), "there are no outputs")


def _ratio(metric: str, unit: str, above_N: Floats, below_N: Floats, undefined: str) -> Measure:
    def score(sums_SK: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(sums_SK[:, 1] > 0, sums_SK[:, 0] / sums_SK[:, 1], np.nan)

    columns_NK = np.stack([above_N, below_N], axis=1)
    return Measure(metric=metric, unit=unit, columns_NK=columns_NK, score=score, undefined=undefined)


def _numbers(argument: str, values: ArrayLike, num_outputs: int) -> NDArray[np.float64]:
    value_N = np.asarray(values, dtype=np.float64)
    if value_N.shape != (num_outputs,):
        raise ValueError(f"{argument} must have one number for each of {num_outputs} outputs, got {value_N.shape}")
    if not np.isfinite(value_N).all():
        raise ValueError(f"{argument} must be finite, got {value_N[~np.isfinite(value_N)][0]}")
    return value_N
