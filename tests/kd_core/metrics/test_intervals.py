"""Intervals of resamples of which some have no value, and of formulas that leave their range."""

import numpy as np
import pytest

from kd_core.metrics.bootstrap import Resamples, measure_all, paired_differences
from kd_core.metrics.distinct import distinct, distinct_within
from kd_core.metrics.intervals import ANY, PERCENT, RANGES, difference_range, interval, range_of
from kd_core.metrics.outputs import AGREEMENT, ALL_METRICS, Outputs, References, evaluate_outputs
from kd_core.metrics.running_text import cross_entropy, free_running

VALUES = np.random.default_rng(0).permutation(np.arange(1000.0))  # 0 .. 999: the q-quantile is 999 q


def with_holes(number: int) -> np.ndarray:
    """The same without `number` of the values in the middle."""
    return np.where(np.abs(VALUES - 499.5) < number / 2, np.nan, VALUES)


def test_all_resamples_defined_is_the_percentile_interval() -> None:
    assert interval(VALUES, ANY) == (pytest.approx(24.975), pytest.approx(974.025), "")


def test_undefined_resamples_are_counted_as_beyond_both_ends() -> None:
    # 4 below everything: the 24.975th of 0, 1, 2, ... behind four others is 20.975; the upper end likewise
    low, high, note = interval(with_holes(4), ANY)
    assert (low, high) == (pytest.approx(20.975), pytest.approx(978.025))
    assert note == "undefined in 4 of 1000 resamples, counted as beyond both ends of the interval"


def test_more_than_the_share_beyond_an_end_leave_no_interval() -> None:
    # 24 of 1,000 are within the 2.5 % (the ends are then the smallest and the largest value); 26 are not
    low, high, _ = interval(with_holes(24), ANY)
    assert (low, high) == (pytest.approx(0.975), pytest.approx(998.025))
    assert interval(with_holes(26), ANY) == (None, None, "no interval: undefined in 26 of 1000 resamples")
    assert interval(np.full(10, np.nan), ANY)[2] == "no interval: undefined in 10 of 10 resamples"
    assert interval(np.array([]), ANY) == (None, None, "")


def test_values_outside_the_range_are_no_values() -> None:
    low, high, note = interval(VALUES / 10 + 0.3, (0, 100))  # 100.1 and 100.2 are outside
    assert (low, high) == (pytest.approx(0.3 + 2.2975 + 0.0), pytest.approx(0.3 + 97.4025 + 0.0))
    assert note == "outside 0 to 100 in 2 of 1000 resamples, counted as beyond both ends of the interval"
    both = np.where(VALUES < 20, np.nan, VALUES)
    assert interval(both, (0, 900))[2] == "no interval: undefined in 20 and outside 0 to 900 in 99 of 1000 resamples"
    assert interval(np.where(VALUES > 9, np.inf, VALUES), ANY)[0] is None


def test_rounding_is_not_outside() -> None:
    assert interval(np.full(100, 100.00000000000004), PERCENT)[2] == ""


def test_dist_of_a_collapsed_model_has_no_interval_and_no_difference_with_one() -> None:
    # two equal long replies, eight times "ok": without the long ones the first-order count stays at 41 words of 10
    texts = [[f"w{i}" for i in range(40)]] * 2 + [["ok"]] * 8
    resamples = Resamples(num_outputs=10)
    collapsed = measure_all([*distinct(texts), *distinct_within(texts)], resamples)
    none = int((resamples.weights_SN[1:, :2].sum(axis=1) == 0).sum())
    assert none > 25, "too few resamples without a long reply for the case that matters"
    found = {each.metric: each for each in collapsed.metrics}
    for metric in ("distinct_1", "distinct_2", "distinct_within_1"):
        assert found[metric].value is not None
        assert (found[metric].low, found[metric].high) == (None, None)
        assert f"no interval: outside 0 to 100 in {none} of 1000 resamples" in found[metric].note
    varied = measure_all([*distinct([[f"a{i}", "b"] for i in range(10)])], resamples)
    for each in paired_differences(collapsed, varied):
        assert each.value is not None
        assert each.low is None
        assert "no interval: undefined in " in each.note


def test_a_metric_that_a_few_resamples_leave_undefined_keeps_its_interval() -> None:
    # 6 of 12 outputs have a 4-gram: a resample has none once in 2^12 = 4,096
    predictions = ["a b c d e"] * 6 + ["yes"] * 6
    references = References(["a b c d f"] * 12, resamples=20_000)
    outputs = Outputs(predictions=predictions, num_tokens=[1] * 12, truncated=[False] * 12)
    bleu_4 = next(each for each in evaluate_outputs(outputs, references, ["bleu"]).metrics if each.metric == "bleu_4")
    missing = int((references.resamples.weights_SN[1:, :6].sum(axis=1) == 0).sum())
    assert 0 < missing < 20
    assert bleu_4.low is not None
    assert bleu_4.high is not None
    assert 0 <= bleu_4.low < bleu_4.high <= 100
    assert f"undefined in {missing} of 20000 resamples, counted as beyond" in bleu_4.note


def test_every_metric_has_a_range_and_lies_in_it() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), 6)) for _ in range(30)]
    outputs = Outputs(
        predictions=texts[::-1],
        num_tokens=[6] * 30,
        truncated=rng.random(30) < 0.1,
        reward_sum=rng.normal(size=30),
        reward_count=[6] * 30,
        agreement={name: rng.random(30) * (-6 if name == "log_prob" else 6) for name in AGREEMENT},
    )
    of_text = evaluate_outputs(outputs, References(texts), ALL_METRICS)
    nll, left, block = rng.exponential(size=(30, 3)), rng.random((30, 3)) < 0.2, np.arange(30) // 2
    running = measure_all(
        cross_entropy(nll[:, 0], block, 15) + free_running(nll, left, block, 15), Resamples(num_outputs=15)
    )
    for each in of_text.metrics + running.metrics:
        assert any(each.metric == name or each.metric.startswith(f"{name}_") for name in RANGES), each.metric
        lowest, highest = range_of(each.metric)
        assert each.low is not None, each
        assert each.high is not None, each
        assert lowest <= each.low <= each.high <= highest, each


def test_ranges_by_name() -> None:
    assert range_of("per") == range_of("cross_entropy_bits") == (0, np.inf)
    assert range_of("perplexity") == (1, np.inf)
    assert (range_of("g_eval_true"), range_of("g_eval_normalised")) == ((0, 1), (0, np.inf))
    assert difference_range("wer") == (-100, 100)
    assert difference_range("length") == range_of("no_such_metric") == (-np.inf, np.inf)
