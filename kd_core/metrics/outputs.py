"""All metrics of a system's outputs, with intervals.

    references = References(texts, resamples=1000, seed=0)     # tokenised, and resamples drawn, once for all systems
    seqkd = evaluate_outputs(Outputs(...), references)
    llmr = evaluate_outputs(Outputs(...), references)
    seqkd.metrics, llmr.metrics, paired_differences(llmr, seqkd)

Shape legend: N outputs, S samples (the outputs as they are, then the resamples), K columns.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kd_core.metrics.bleu import STOCK, SacreBleuSettings, paper_bleu, stock_bleu
from kd_core.metrics.bootstrap import Measure, Measured, Resamples, measure_all
from kd_core.metrics.distinct import distinct, distinct_within
from kd_core.metrics.errors import phoneme_error_rate, word_error_rate
from kd_core.metrics.ratios import mean, ratio
from kd_core.metrics.rouge import ASCII, RougeSettings, rouge
from kd_core.metrics.scripts import unspaced_remark
from kd_core.metrics.variety import equal, repetition
from kd_core.metrics.words import words

# what can be asked for; a family of metrics that are computed together has one name
MetricName = Literal[
    "bleu",
    "sacrebleu",
    "rouge",
    "distinct",
    "distinct_within",
    "equal",
    "repetition",
    "per",
    "wer",
    "length",
    "truncated",
    "reward",
    "agreement",
]
ALL_METRICS: tuple[MetricName, ...] = get_args(MetricName)
TEXT_METRICS: tuple[MetricName, ...] = tuple(name for name in ALL_METRICS if name not in ("per", "wer"))
# what is known of teacher and writer at the outputs' tokens: unit, and how many of it one of a token's number is
AGREEMENT = {
    "log_prob": ("nats/token", 1.0),
    "teacher_entropy": ("nats/token", 1.0),
    "reverse_kl": ("nats/token", 1.0),
    "forward_kl": ("nats/token", 1.0),
    "overlap": ("%", 100.0),
}


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What one system wrote for N inputs, in the order of the references, and what is known of each output.

    num_tokens: (N,), the model's tokens, the end included where there is one. truncated: (N,), whether it was cut off
    at the length limit. reward_sum, reward_count: (N,), the teacher's reward in nats summed over the tokens that were
    rewarded, and their number (0 = not rewarded); None where no teacher was asked. agreement: (N,) each, by the names
    of `AGREEMENT`: nats, or shares of 0 to 1, summed over each output's tokens; None where the teacher is behind a
    server that does not tell, none at all where no teacher was asked.
    """

    predictions: Sequence[str]
    num_tokens: ArrayLike
    truncated: ArrayLike
    reward_sum: ArrayLike | None = None
    reward_count: ArrayLike | None = None
    agreement: Mapping[str, ArrayLike | None] = field(default_factory=dict)

    @cached_property
    def words(self) -> list[list[str]]:
        """Each prediction in lower-cased wordpunct tokens."""
        return [words(text) for text in self.predictions]


class References:
    """The references of N inputs, and the resamples that every system on them shares."""

    def __init__(self, texts: Sequence[str], *, resamples: int = 1000, seed: int = 0) -> None:
        self.texts = texts
        self.resamples = Resamples(num_outputs=len(texts), num_resamples=resamples, seed=seed)

    @cached_property
    def words(self) -> list[list[str]]:
        """Each reference in lower-cased wordpunct tokens."""
        return [words(text) for text in self.texts]

    @cached_property
    def remark(self) -> str:
        """What wordpunct tokens make of the references' scripts, if that is worth a note."""
        return unspaced_remark(self.texts, marks_are_words=True)


def evaluate_outputs(
    outputs: Outputs,
    references: References,
    metrics: Collection[MetricName] = TEXT_METRICS,
    *,
    rouge_settings: RougeSettings = ASCII,
    sacrebleu_settings: SacreBleuSettings = STOCK,
) -> Measured:
    """The metrics of a system's outputs that are asked for, in the order of `ALL_METRICS`.

    Raises ValueError if there is no such metric, if the numbers of predictions, references and per-output numbers
    differ, or if a reward is not finite.
    """
    check_metrics(metrics)
    num_outputs = len(references.texts)
    if len(outputs.predictions) != num_outputs:
        raise ValueError(f"there are {len(outputs.predictions)} predictions for {num_outputs} references")
    tokenizers = rouge_settings, sacrebleu_settings
    asked_for = [name for name in ALL_METRICS if name in metrics]
    measures = [each for name in asked_for for each in _measures(name, outputs, references, *tokenizers)]
    return measure_all(measures, references.resamples)


def check_metrics(metrics: Collection[str]) -> None:
    """Raise ValueError unless there is at least one metric, and each is one that can be computed."""
    unknown = sorted(set(metrics) - set(ALL_METRICS))
    if unknown or not metrics:
        raise ValueError(f"metrics must be some of {', '.join(ALL_METRICS)}; got {', '.join(unknown) or 'none'}")


def _measures(
    name: MetricName,
    outputs: Outputs,
    references: References,
    rouge_settings: RougeSettings,
    sacrebleu_settings: SacreBleuSettings,
) -> list[Measure]:
    num_outputs, pair = len(references.texts), (outputs.predictions, references.texts)
    match name:
        case "bleu":
            return paper_bleu(outputs.words, references.words, references.remark)
        case "sacrebleu":
            return stock_bleu(*pair, sacrebleu_settings)
        case "rouge":
            return rouge(*pair, rouge_settings)
        case "distinct":
            return distinct(outputs.words, references.remark)
        case "distinct_within":
            return distinct_within(outputs.words, references.remark)
        case "equal":
            return [equal(outputs.predictions)]
        case "repetition":
            return [repetition(outputs.words, references.remark)]
        case "per":
            return [phoneme_error_rate(*pair)]
        case "wer":
            return [word_error_rate(*pair)]
        case "length":
            return [mean("length", "tokens", _numbers("num_tokens", outputs.num_tokens, num_outputs))]
        case "truncated":
            cut_N = 100 * np.asarray(outputs.truncated, dtype=np.float64)
            return [mean("truncated", "%", _numbers("truncated", cut_N, num_outputs))]
        case "reward":
            return _rewards(outputs, num_outputs)
        case "agreement":
            return [_agreement(metric, outputs, num_outputs) for metric in AGREEMENT]


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
        ratio("reward", "nats/token", total_N, count_N, none),
        ratio("gain", "nats/output", total_N, count_N > 0, none),
    ]


def _agreement(metric: str, outputs: Outputs, num_outputs: int) -> Measure:
    """Of a token of the outputs, each the same, whatever output it is in."""
    unit, scale = AGREEMENT[metric]
    told = outputs.agreement.get(metric)
    total_N = _numbers(metric, np.zeros(num_outputs) if told is None else told, num_outputs)
    count_N = _numbers("num_tokens", outputs.num_tokens, num_outputs) * (told is not None)
    served = metric in outputs.agreement
    none = "not measured: the teacher is behind a server" if served else "no teacher was asked"
    return ratio(metric, unit, scale * total_N, count_N, none)


def _numbers(argument: str, values: ArrayLike, num_outputs: int) -> NDArray[np.float64]:
    value_N = np.asarray(values, dtype=np.float64)
    if value_N.shape != (num_outputs,):
        raise ValueError(f"{argument} must have one number for each of {num_outputs} outputs, got {value_N.shape}")
    if not np.isfinite(value_N).all():
        raise ValueError(f"{argument} must be finite, got {value_N[~np.isfinite(value_N)][0]}")
    return value_N
