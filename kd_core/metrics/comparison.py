"""Statistics of a grid of methods and seeds: means with intervals, and paired differences with corrected p-values.

What is random is twofold: the test inputs, and the seeds that a method was trained with. With Y_k the metric of seed
k = 1 .. K (unbiased variance s^2 over seeds) and Y_k(r) its value in resample r of the inputs, the interval of the mean
over seeds is that of

    T_r = mean_k Y_k(r) + z_r sqrt(max(0, (K - 1) s^2 / x_r - v) / K),    z_r ~ N(0, 1), x_r ~ chi^2 with K - 1 degrees.

The first term resamples the inputs. The second draws the error of having K seeds from what s^2 leaves open (the
generalised pivot of a variance component, Weerahandi 1993): s^2 estimates the variance between seeds plus v, the part
of it that is there because each seed errs on inputs of its own, and which the first term has already,

    v = K / (K - 1) mean_k Var_r[Y_k(r) - mean_j Y_j(r)].

Where seeds differ by much more than inputs explain, this is Student's t interval; where they do not, the percentile
bootstrap. [ours] Drawing seeds with replacement is no use here: it never leaves the range of the seeds at hand, and its
95 % interval of three of them covers 76 % (docs/methods/metrics.md has the simulation).

The interval covers: other test inputs from the same source, and other seeds of the same procedure, both at once. It
does not cover: other corpora, other splits, another teacher, or settings that were chosen on these very inputs. With
one seed it covers inputs only, and says so. Seeds are taken to be normally distributed.

Shape legend: K seeds, R resamples, S = R + 1 samples (the value, then the resamples).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from kd_core.metrics.bootstrap import Measured, MetricValue, summarise
from kd_core.metrics.intervals import Floats, difference_range

Grid = Mapping[tuple[str, int], Measured]  # (method, seed) -> what was measured, all on the same resamples


@dataclass(frozen=True, kw_only=True)
class MethodValue:
    """A metric of a method: the mean over its seeds with its interval, and the worst and the best of them by number."""

    method: str
    mean: MetricValue
    lowest: float | None
    highest: float | None
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class MethodDifference:
    """A metric of `method` minus that of `baseline`, seed by seed, in the mean.

    p: two-sided, of no difference; None where the difference or its interval is undefined. p_corrected: by Holm, for
    the `num_comparisons` differences of this metric that have one.
    """

    method: str
    baseline: str
    mean: MetricValue
    num_seeds: int
    p: float | None
    p_corrected: float | None = None
    num_comparisons: int = 0


def method_values(grid: Grid, *, seed: int = 0) -> list[MethodValue]:
    """Every metric of every method, in the order of the grid. `seed` is that of the draws z and x.

    A metric that is undefined for a seed is absent, with the reason. Raises ValueError if the resamples differ.
    """
    _check(grid)
    found = []
    for method, seeds in _seeds(grid).items():
        for metric in _metrics(grid, method):
            samples = {k: _get(grid[method, k], metric) for k in seeds}
            values = [value.value for value, _ in samples.values() if value.value is not None]
            found.append(
                MethodValue(
                    method=method,
                    mean=_mean(samples, seed),
                    lowest=min(values, default=None),
                    highest=max(values, default=None),
                    num_seeds=len(seeds),
                )
            )
    return found


def method_differences(grid: Grid, *, seed: int = 0) -> list[MethodDifference]:
    """Every metric of each method minus each one before it in the grid, paired over inputs and seeds, metric by metric.

    Only seeds that both methods have count; a system without seeds, such as the teacher, is given under each of them.
    Raises ValueError if the resamples differ.
    """
    _check(grid)
    seeds = _seeds(grid)
    by_metric: dict[str, list[MethodDifference]] = {}
    for baseline, method in combinations(seeds, 2):
        both = [k for k in seeds[method] if k in seeds[baseline]]
        shared = [metric for metric in _metrics(grid, method) if metric in _metrics(grid, baseline)]
        for metric in shared:
            pairs = {k: (_get(grid[method, k], metric), _get(grid[baseline, k], metric)) for k in both}
            like, _ = _get(grid[method, seeds[method][0]], metric)
            by_metric.setdefault(metric, []).append(_difference(method, baseline, pairs, like, seed))
    return [each for differences in by_metric.values() for each in _corrected(differences)]


def p_value(draw_R: Floats) -> float:
    """Two-sided p of no difference: twice the share of draws on the other side of 0, the value itself counted as one.

    Below 0.05 where the 95 % interval leaves out 0, up to rounding; never below 2 / (R + 1). A draw without a value
    (NaN) counts as on the other side, as it does for the interval.
    """
    tail = min((draw_R <= 0).sum(), (draw_R >= 0).sum()) + np.isnan(draw_R).sum()
    return float(min(1.0, 2 * (tail + 1) / (len(draw_R) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the chance of one false finding or more among them is held.

    The smallest is multiplied by m, the next by m - 1, and so on; none is smaller than one before it, none above 1.
    Source: Holm (1979).
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


Sample = tuple[MetricValue, Floats]


def _check(grid: Grid) -> None:
    """Raise ValueError unless each metric is of as many outputs, in as many resamples, wherever it was measured."""
    known: dict[str, tuple[int, int, str]] = {}
    for (method, k), measured in grid.items():
        for each in measured.metrics:
            sizes = each.n, len(measured.samples[each.metric]) - 1
            *expected, first = known.setdefault(each.metric, (*sizes, f"{method} with seed {k}"))
            if list(sizes) != expected:
                raise ValueError(
                    f"{each.metric} needs the same outputs and resamples in all of a grid, got {expected[0]} outputs "
                    f"in {expected[1]} resamples for {first}, and {sizes[0]} in {sizes[1]} for {method} with seed {k}"
                )


def _seeds(grid: Grid) -> dict[str, list[int]]:
    seeds: dict[str, list[int]] = {}
    for method, k in grid:
        seeds.setdefault(method, []).append(k)
    return seeds


def _metrics(grid: Grid, method: str) -> list[str]:
    """The metrics that every seed of the method has."""
    each_seed = [[value.metric for value in measured.metrics] for (name, _), measured in grid.items() if name == method]
    return [metric for metric in each_seed[0] if all(metric in names for names in each_seed)]


def _get(measured: Measured, metric: str) -> Sample:
    return next(each for each in measured.metrics if each.metric == metric), measured.samples[metric]


def _over_seeds(samples: Mapping[int, Sample], seed: int) -> tuple[Floats, str, str]:
    """(S,) the mean over seeds, then T_r; the reason if it is undefined; a remark if it is not."""
    sample_KS = np.stack([sample_S for _, sample_S in samples.values()])
    draws_S, num_seeds = sample_KS.mean(axis=0), len(samples)
    undefined = [f"undefined for seed {k}: {value.note}" for k, (value, _) in samples.items() if value.value is None]
    if undefined:
        return draws_S, undefined[0], ""
    if num_seeds == 1:
        return draws_S, "", "one seed: the interval covers inputs only"
    if draws_S.size > 1:
        between = sample_KS[:, 0].var(ddof=1)
        known_R = ~np.isnan(draws_S[1:])  # resamples in which every seed has a value
        apart_KR = (sample_KS[:, 1:] - draws_S[1:])[:, known_R]
        by_input = apart_KR.var(axis=1).mean() * num_seeds / (num_seeds - 1) if known_R.any() else 0.0
        rng = np.random.default_rng([seed, num_seeds])
        z_R, x_R = rng.standard_normal(draws_S.size - 1), rng.chisquare(num_seeds - 1, draws_S.size - 1)
        left_R = ((num_seeds - 1) * between / x_R - by_input).clip(min=0)
        draws_S[1:] += z_R * np.sqrt(left_R / num_seeds)
    return draws_S, "", ""


def _mean(samples: Mapping[int, Sample], seed: int) -> MetricValue:
    draws_S, undefined, note = _over_seeds(samples, seed)
    first, _ = next(iter(samples.values()))
    return summarise(first.metric, draws_S, num_outputs=first.n, unit=first.unit, undefined=undefined, note=note)


def _difference(
    method: str, baseline: str, pairs: Mapping[int, tuple[Sample, Sample]], like: MetricValue, seed: int
) -> MethodDifference:
    """One difference, its p not yet corrected."""
    if not pairs:
        mean = replace(like, value=None, low=None, high=None, note="no seed in common")
        return MethodDifference(method=method, baseline=baseline, mean=mean, num_seeds=0, p=None)
    samples = {
        k: (ours if ours.value is None else theirs, ours_S - theirs_S)
        for k, ((ours, ours_S), (theirs, theirs_S)) in pairs.items()
    }
    draws_S, undefined, note = _over_seeds(samples, seed)
    mean = summarise(
        like.metric,
        draws_S,
        num_outputs=like.n,
        unit=like.unit,
        undefined=undefined,
        note=note,
        allowed=difference_range(like.metric),
    )
    p = None if mean.low is None else p_value(draws_S[1:])
    return MethodDifference(method=method, baseline=baseline, mean=mean, num_seeds=len(pairs), p=p)


def _corrected(differences: list[MethodDifference]) -> list[MethodDifference]:
    """The differences of one metric, with Holm's p."""
    tested = [i for i, each in enumerate(differences) if each.p is not None]
    corrected = dict(zip(tested, holm([differences[i].p or 0.0 for i in tested]), strict=True))
    return [
        replace(each, p_corrected=corrected.get(i), num_comparisons=len(tested)) for i, each in enumerate(differences)
    ]
