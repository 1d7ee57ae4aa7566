"""Statistics over seeds: the interval covers what it says, pairs are paired, Holm by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_core.metrics.bootstrap import Measured, MetricValue, Resamples
from kd_core.metrics.comparison import Grid, holm, method_differences, method_values, p_value
from kd_core.metrics.intervals import Floats


def measured(**samples: Floats) -> Measured:
    """One system with the given samples, of 100 outputs."""
    metrics = [
        MetricValue(
            metric=metric,
            value=None if np.isnan(sample_S[0]) else float(sample_S[0]),
            low=None,
            high=None,
            n=100,
            unit="points",
            note="no output has 4 tokens" if np.isnan(sample_S[0]) else "",
        )
        for metric, sample_S in samples.items()
    ]
    return Measured(metrics=metrics, samples=samples)


def drawn(rng: np.random.Generator, spread: tuple[float, float, float], num_seeds: int = 3) -> dict[int, Measured]:
    """Seeds of a method whose true mean is 0: each has an effect, each input has one, each pair of them has one."""
    of_seed, of_input, of_both = spread
    effect_KN = of_seed * rng.standard_normal((num_seeds, 1)) + of_both * rng.standard_normal((num_seeds, 100))
    effect_KN += of_input * rng.standard_normal(100)
    weights_SN = Resamples(num_outputs=100, num_resamples=200, seed=int(rng.integers(2**31))).weights_SN
    return {k: measured(x=weights_SN @ effect_N / 100) for k, effect_N in enumerate(effect_KN)}


@pytest.mark.parametrize(
    ("spread", "least", "most"),
    [
        ((1, 0, 0.01), 0.93, 0.97),  # seeds alone: Student's t, exact
        ((1, 1, 1), 0.93, 0.97),
        ((0, 10, 0.1), 0.91, 0.97),  # inputs alone: the percentile bootstrap of 100 values
        ((0, 0, 10), 0.95, 1.0),  # seeds that do not differ but for inputs of their own: on the safe side
    ],
)
def test_the_interval_covers_the_truth_19_times_in_20(
    spread: tuple[float, float, float], least: float, most: float
) -> None:
    # 1,000 experiments with 3 seeds; the share is known to 0.7 % (one standard error) and may be 3 of them off
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(1000):
        grid: Grid = {("m", k): each for k, each in drawn(rng, spread).items()}
        mean = method_values(grid, seed=i)[0].mean
        assert mean.low is not None
        assert mean.high is not None
        hits += mean.low <= 0 <= mean.high
    assert least <= hits / 1000 <= most


def test_methods_that_do_not_differ_are_told_apart_one_time_in_20_at_most() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for i in range(1000):
        grid = {(name, k): each for name in "ab" for k, each in drawn(rng, (1, 0, 0.1)).items()}
        p = method_differences(grid, seed=i)[0].p
        assert p is not None
        found += p < 0.05
    assert 0.03 <= found / 1000 <= 0.07


def test_mean_lowest_and_highest_seed_and_one_value_of_a_metric_a_row() -> None:
    samples = [np.array([value, value - 1, value + 1]) for value in (3.0, 1.0, 8.0)]
    grid = {("llmr", k): measured(bleu=sample_S, length=2 * sample_S) for k, sample_S in enumerate(samples)}
    bleu, length = method_values(grid)
    assert (bleu.method, bleu.mean.metric, bleu.mean.value, bleu.lowest, bleu.highest) == ("llmr", "bleu", 4, 1, 8)
    assert (bleu.num_seeds, bleu.mean.n, bleu.mean.unit) == (3, 100, "points")
    assert (length.mean.metric, length.mean.value) == ("length", 8)


def test_seeds_that_are_all_alike_leave_the_bootstrap_over_inputs() -> None:
    sample_S = np.random.default_rng(0).normal(size=501)
    alone = method_values({("teacher", 0): measured(x=sample_S)})[0].mean
    thrice = method_values({("teacher", k): measured(x=sample_S) for k in range(3)})[0].mean
    low, high = np.quantile(sample_S[1:], [0.025, 0.975])
    assert [alone.low, alone.high] == pytest.approx([low, high])
    assert [thrice.low, thrice.high] == pytest.approx([low, high])
    assert (alone.note, thrice.note) == ("one seed: the interval covers inputs only", "")


def test_differences_are_paired_over_inputs_and_over_seeds() -> None:
    # both methods swing with the seed by 10 and with the input by 5; b is always 1 above a
    rng = np.random.default_rng(0)
    a = {k: 10 * rng.standard_normal() + 5 * rng.standard_normal(201) for k in range(3)}
    grid = {("a", k): measured(x=sample_S) for k, sample_S in a.items()}
    grid |= {("b", k): measured(x=sample_S + 1) for k, sample_S in a.items()}
    (found,) = method_differences(grid)
    assert (found.method, found.baseline, found.num_seeds) == ("b", "a", 3)
    assert [found.mean.value, found.mean.low, found.mean.high] == pytest.approx([1, 1, 1])
    assert found.p == pytest.approx(2 / 201)
    assert method_values(grid)[0].mean.low < -5  # type: ignore[operator]


def test_only_seeds_in_common_count_and_none_is_a_reason() -> None:
    def constant(value: float) -> Measured:
        return measured(x=np.full(11, value))

    grid = {("a", 0): constant(1), ("a", 1): constant(2), ("b", 1): constant(5), ("b", 2): constant(100)}
    (found,) = method_differences(grid)
    assert (found.mean.value, found.num_seeds) == (3, 1)
    (apart,) = method_differences({("a", 0): constant(1), ("b", 1): constant(5)})
    assert (apart.mean.value, apart.mean.low, apart.mean.note, apart.p) == (None, None, "no seed in common", None)


def test_undefined_ones_are_absent_with_the_reason_and_are_not_counted() -> None:
    rng = np.random.default_rng(0)

    def normal() -> Floats:
        return rng.normal(size=101)

    grid = {(name, k): measured(x=normal()) for name in "abc" for k in range(2)}
    grid["c", 1] = measured(x=np.full(101, np.nan))
    values = {each.method: each for each in method_values(grid)}
    assert (values["c"].mean.value, values["c"].mean.note) == (None, "undefined for seed 1: no output has 4 tokens")
    differences = {(each.method, each.baseline): each for each in method_differences(grid)}
    assert list(differences) == [("b", "a"), ("c", "a"), ("c", "b")]
    for pair in (("c", "a"), ("c", "b")):
        assert (differences[pair].mean.value, differences[pair].p, differences[pair].p_corrected) == (None, None, None)
        assert differences[pair].mean.note == "undefined for seed 1: no output has 4 tokens"
    alone = differences["b", "a"]
    assert (alone.p_corrected, alone.num_comparisons) == (alone.p, 1)


def holed(number: int, seed: int = 0) -> Floats:
    """1,000 resamples around 3, some of them undefined."""
    sample_S = np.random.default_rng(seed).normal(3, 1, size=1001)
    sample_S[7 : 7 + number] = np.nan
    return sample_S


def test_a_few_resamples_without_a_value_count_against_the_difference() -> None:
    # 3 of 1,000: as if they lay below the lower end and above the upper one, and on the other side of 0
    holed_S = holed(3)
    (found,) = method_differences({("a", 0): measured(x=np.zeros(1001)), ("b", 0): measured(x=holed_S)})
    assert found.mean.value == pytest.approx(holed_S[0])
    low = np.quantile(np.nan_to_num(holed_S[1:], nan=-1e9), 0.025)
    high = np.quantile(np.nan_to_num(holed_S[1:], nan=1e9), 0.975)
    assert [found.mean.low, found.mean.high] == pytest.approx([low, high])
    assert found.p == pytest.approx(2 * ((holed_S[1:] <= 0).sum() + 3 + 1) / 1001)
    assert "undefined in 3 of 1000 resamples, counted as beyond both ends" in found.mean.note


def test_many_resamples_without_a_value_leave_no_interval_and_no_p() -> None:
    (found,) = method_differences({("a", 0): measured(x=holed(25)), ("b", 0): measured(x=np.zeros(1001))})
    assert found.mean.value == pytest.approx(-holed(25)[0])
    assert (found.mean.low, found.p, found.num_comparisons) == (None, None, 0)
    assert found.mean.note.endswith("no interval: undefined in 25 of 1000 resamples")


def test_seeds_of_which_one_lacks_a_resample_still_have_an_interval() -> None:
    grid = {("m", k): measured(x=holed(number, seed=k)) for k, number in enumerate((0, 2, 0))}
    mean = method_values(grid)[0].mean
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low < 3 < mean.high
    assert mean.note == "undefined in 2 of 1000 resamples, counted as beyond both ends of the interval"


def test_seeds_so_far_apart_that_the_interval_would_leave_the_metrics_range_have_none() -> None:
    # three seeds at 0.1, 0.2 and 1.5 %: Student's t interval of their mean reaches from -1.3 to 2.5 %
    grid = {("m", k): measured(truncated=np.full(1001, value)) for k, value in enumerate((0.1, 0.2, 1.5))}
    mean = method_values(grid)[0].mean
    assert (mean.value, mean.low, mean.high) == (pytest.approx(0.6), None, None)
    assert "no interval: outside 0 to 100 in " in mean.note
    grid |= {("n", k): measured(truncated=np.full(1001, value)) for k, value in enumerate((0.3, 0.1, 1.2))}
    (difference,) = method_differences(grid)
    assert difference.mean.low is not None, "a difference may be below 0"


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and the last is raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_lies_between_nothing_and_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= min(1, len(p_values) * p) for p, q in zip(p_values, corrected, strict=True))
    assert sorted(corrected) == [corrected[i] for i in sorted(range(len(p_values)), key=p_values.__getitem__)]


def test_p_values_by_hand_and_with_the_interval() -> None:
    assert p_value(np.array([1.0, 2.0, -1.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])) == pytest.approx(2 * 2 / 10)
    assert p_value(np.zeros(9)) == 1
    assert p_value(np.ones(999)) == 2 / 1000
    assert p_value(np.array([np.nan, *[1.0] * 998])) == 4 / 1000, "what is undefined may lie on the other side"
    rng = np.random.default_rng(0)
    for shift in np.linspace(1, 3, 21):
        draw_R = rng.normal(shift, 1, 2000)
        low = np.quantile(draw_R, 0.025)
        if abs(low) > 0.01:
            assert (p_value(draw_R) < 0.05) == (low > 0)


def test_comparisons_are_corrected_within_their_metric() -> None:
    rng = np.random.default_rng(0)
    grid = {(name, 0): measured(x=rng.normal(i, 1, 1001), y=rng.normal(0, 1, 1001)) for i, name in enumerate("abcd")}
    found = method_differences(grid)
    for metric in "xy":
        of_metric = [each for each in found if each.mean.metric == metric]
        assert [each.num_comparisons for each in of_metric] == [6] * 6
        assert [each.p_corrected for each in of_metric] == holm([each.p or 0 for each in of_metric])


@pytest.mark.parametrize("function", [method_values, method_differences])
def test_a_grid_of_different_resamples_is_refused(function: Callable[[Grid], object]) -> None:
    grid = {("a", 0): measured(x=np.zeros(11)), ("b", 3): measured(x=np.zeros(21))}
    message = "got 100 outputs in 10 resamples for a with seed 0, and 100 in 20 for b with seed 3"
    with pytest.raises(ValueError, match=message):
        function(grid)
