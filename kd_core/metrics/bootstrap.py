"""Paired bootstrap over outputs, through what each output adds to a metric.

Every metric here is a function of sums over outputs (n-gram matches, lengths, rewards), so a resample needs only the
number of times that each output was drawn: sums = weights @ columns, for all metrics and resamples in one product.

Shape legend: N outputs, R resamples, S = R + 1 samples (the outputs as they are, then the resamples), K columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kd_core.metrics.intervals import Floats, Range, difference_range, interval, outside, range_of

CHUNK_ROWS = 64  # samples whose weights are float64 at a time: 5 MB at N = 10,000


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """A metric of one system, or its difference between two.

    `value` is None where the metric is undefined, and `note` says why. `low` and `high` are the ends of the 95 %
    interval, None where there is none. `n`: the number of outputs. A note on a defined value is a remark on how it
    was computed.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric as a function of sums over outputs.

    columns_NK: what each output adds. score: sums (S, K) -> values (S,), NaN where undefined. undefined: the reason,
    if the outputs as they are leave it undefined.
    """

    metric: str
    unit: str
    columns_NK: Floats
    score: Callable[[Floats], Floats]
    undefined: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """How often each of `num_outputs` outputs is drawn in each of `num_resamples` resamples, the same for every system.

    Raises ValueError if there is no output, or fewer than 0 resamples; 0 gives values without intervals.
    """

    num_outputs: int
    num_resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_outputs < 1:
            raise ValueError("there are no outputs to evaluate")
        if self.num_resamples < 0:
            raise ValueError(f"resamples must be 0 (no intervals) or more, got {self.num_resamples}")

    @cached_property
    def weights_SN(self) -> NDArray[np.uint16]:
        """Row 0 draws each output once; each other row draws N outputs with replacement."""
        rng = np.random.default_rng(self.seed)
        weights_SN = np.ones((self.num_resamples + 1, self.num_outputs), dtype=np.uint16)
        for row_N in weights_SN[1:]:
            drawn = rng.integers(self.num_outputs, size=self.num_outputs)
            row_N[:] = np.bincount(drawn, minlength=self.num_outputs)
        return weights_SN

    def values(self, measures: Sequence[Measure]) -> dict[str, Floats]:
        """Each measure's value in every sample, (S,) by metric name."""
        columns_NK = np.concatenate([measure.columns_NK for measure in measures], axis=1)
        sums_SK = np.concatenate(
            [
                self.weights_SN[start : start + CHUNK_ROWS].astype(np.float64) @ columns_NK
                for start in range(0, len(self.weights_SN), CHUNK_ROWS)
            ]
        )
        ends = np.cumsum([measure.columns_NK.shape[1] for measure in measures])
        parts = np.split(sums_SK, ends[:-1], axis=1)
        return {measure.metric: measure.score(part) for measure, part in zip(measures, parts, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A system's metrics, and the value of each in every sample, (S,), which differences are made from."""

    metrics: list[MetricValue]
    samples: dict[str, Floats]


def measure_all(measures: Sequence[Measure], resamples: Resamples) -> Measured:
    """Each measure with its interval. Systems on the same inputs are given equal `resamples`: they are then paired.

    A resample in which a formula leaves the metric's range has no value: the interval's note says so, and it is NaN
    in the samples, so that no difference is made of it.
    """
    samples = resamples.values(measures)
    metrics = [
        summarise(
            measure.metric,
            samples[measure.metric],
            num_outputs=resamples.num_outputs,
            unit=measure.unit,
            undefined=measure.undefined,
            note=measure.note,
        )
        for measure in measures
    ]
    in_range = {name: np.where(outside(each_S, range_of(name)), np.nan, each_S) for name, each_S in samples.items()}
    return Measured(metrics=metrics, samples=in_range)


def paired_differences(system: Measured, baseline: Measured) -> list[MetricValue]:
    """Every metric of `system` minus that of `baseline`, with paired intervals: both were resampled alike.

    A difference with an undefined side is absent, with that side's reason. A metric that only one of them has is left
    out. Raises ValueError if they cannot have been measured on the same inputs with the same resamples.
    """
    others = {each.metric: each for each in baseline.metrics}
    pairs = [(ours, others[ours.metric]) for ours in system.metrics if ours.metric in others]
    for ours, theirs in pairs:
        sizes = ours.n, len(system.samples[ours.metric]), theirs.n, len(baseline.samples[ours.metric])
        if sizes[:2] != sizes[2:]:
            raise ValueError(
                f"a difference of {ours.metric} needs the same outputs and resamples on both sides, got {sizes[0]} "
                f"outputs in {sizes[1] - 1} resamples and {sizes[2]} in {sizes[3] - 1}"
            )
    return [
        summarise(
            ours.metric,
            system.samples[ours.metric] - baseline.samples[ours.metric],
            num_outputs=ours.n,
            unit=ours.unit,
            undefined=ours.note if ours.value is None else theirs.note,
            allowed=difference_range(ours.metric),
        )
        for ours, theirs in pairs
    ]


def summarise(
    metric: str,
    value_S: Floats,
    *,
    num_outputs: int,
    unit: str,
    undefined: str = "",
    note: str = "",
    allowed: Range | None = None,
) -> MetricValue:
    """The value of the outputs as they are, with the percentile interval over the resamples.

    value_S: (S,), the value first, NaN where undefined. allowed: the range of what is resampled, the metric's own if
    None. There is no interval where there are no two outputs to draw from, nor where too many resamples are without a
    value (kd_core.metrics.intervals has the rule); the note says so.
    """
    value = float(value_S[0])
    if np.isnan(value):
        return MetricValue(metric=metric, value=None, low=None, high=None, n=num_outputs, unit=unit, note=undefined)
    if num_outputs < 2:
        low, high, remark = None, None, "no interval: one output"
    else:
        low, high, remark = interval(value_S[1:], range_of(metric) if allowed is None else allowed)
    note = "; ".join(each for each in (note, remark) if each)
    return MetricValue(metric=metric, value=value, low=low, high=high, n=num_outputs, unit=unit, note=note)
