"""Values, intervals and differences of whole systems, against a slow bootstrap that builds every resample."""

from typing import Any

import numpy as np
import pytest
import sacrebleu

from kd_core.metrics.bootstrap import Measured, MetricValue, Resamples, paired_differences, summarise
from kd_core.metrics.outputs import AGREEMENT, Outputs, References, evaluate_outputs
from kd_core.metrics.words import words

N, R = 12, 40
WORDS = ["yes", "no", "I", "do", "not", "know", "it's", "fine", ".", "?"]
NATS = ["log_prob", "teacher_entropy", "reverse_kl", "forward_kl"]
COUNTED = ["bleu_2", "bleu_4", "sacrebleu_2", "sacrebleu_4", "repetition", "length", "truncated", "reward", "gain"]
COUNTED += [*NATS, "overlap"]  # plain bootstrap


def texts(seed: int, number: int = N, longest: int = 20) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(4, longest))) for _ in range(number)]


def outputs(seed: int, number: int = N, **changes: Any) -> Outputs:
    rng = np.random.default_rng(seed)
    given = {
        "predictions": texts(seed, number),
        "num_tokens": rng.integers(1, 20, number),
        "truncated": rng.random(number) < 0.3,
        "reward_sum": rng.normal(size=number),
        "reward_count": rng.integers(0, 9, number),
    }
    sums = {name: rng.random(number) * (-1 if name == "log_prob" else 1) for name in AGREEMENT}
    given |= {"agreement": sums}
    return Outputs(**(given | changes))


def by_metric(metrics: list[MetricValue]) -> dict[str, MetricValue]:
    return {each.metric: each for each in metrics}


def slow(system: Outputs, references: list[str], rows: list[int]) -> dict[str, float]:
    """The metrics of the outputs `rows`, drawn one by one. Every output has 4 words: sacreBLEU's BLEU is NLTK's."""
    drawn = [(system.predictions[i], references[i]) for i in rows]
    predictions, targets = [list(side) for side in zip(*drawn, strict=True)]
    tokenised = [[" ".join(words(text)) for text in side] for side in (predictions, targets)]
    result = {}
    for order in (2, 4):
        paper = sacrebleu.metrics.BLEU(tokenize="none", force=True, smooth_method="none", max_ngram_order=order)
        result[f"bleu_{order}"] = paper.corpus_score(tokenised[0], [tokenised[1]]).score
        stock = sacrebleu.metrics.BLEU(max_ngram_order=order)
        result[f"sacrebleu_{order}"] = stock.corpus_score(predictions, [targets]).score
    columns = {
        name: np.asarray(getattr(system, name))[rows]
        for name in ("num_tokens", "truncated", "reward_sum", "reward_count")
    }
    result["length"] = columns["num_tokens"].mean()
    result["truncated"] = 100 * columns["truncated"].mean()
    result["reward"] = columns["reward_sum"].sum() / columns["reward_count"].sum()
    result["gain"] = columns["reward_sum"].sum() / (columns["reward_count"] > 0).sum()
    for name in AGREEMENT:
        result[name] = np.asarray(system.agreement[name])[rows].sum() / columns["num_tokens"].sum()
    result["overlap"] *= 100
    quadruples = [list(zip(*(words(text)[k:] for k in range(4)), strict=False)) for text in predictions]
    result["repetition"] = 100 * (1 - sum(len(set(each)) for each in quadruples) / sum(map(len, quadruples)))
    return result


def drawn_rows(references: References) -> list[list[int]]:
    """Each resample as the list of rows in it."""
    return [np.repeat(np.arange(N), weights).tolist() for weights in references.resamples.weights_SN[1:]]


def test_values_and_intervals_are_those_of_the_slow_bootstrap() -> None:
    references = References(texts(0), resamples=R, seed=3)
    system = outputs(1)
    resampled = [slow(system, texts(0), rows) for rows in drawn_rows(references)]
    found = by_metric(evaluate_outputs(system, references).metrics)
    value = slow(system, texts(0), list(range(N)))
    for metric in COUNTED:
        low, high = np.quantile([each[metric] for each in resampled], [0.025, 0.975])
        expected = [value[metric], low, high]
        assert [found[metric].value, found[metric].low, found[metric].high] == pytest.approx(expected, rel=1e-9), metric
        assert low < high


def test_differences_are_paired() -> None:
    references = References(texts(0), resamples=R, seed=3)
    llmr, seqkd = outputs(1), outputs(2)
    resampled = [
        {metric: slow(llmr, texts(0), rows)[metric] - slow(seqkd, texts(0), rows)[metric] for metric in COUNTED}
        for rows in drawn_rows(references)
    ]
    there = evaluate_outputs(llmr, references), evaluate_outputs(seqkd, references)
    found = by_metric(paired_differences(*there))
    for metric in COUNTED:
        low, high = np.quantile([each[metric] for each in resampled], [0.025, 0.975])
        assert [found[metric].low, found[metric].high] == pytest.approx([low, high], rel=1e-9, abs=1e-12), metric
    back = by_metric(paired_differences(*reversed(there)))
    for metric, each in found.items():
        value, low, high = back[metric].value, back[metric].low, back[metric].high
        assert value is not None
        assert low is not None
        assert high is not None
        assert [each.value, each.low, each.high] == pytest.approx([-value, -high, -low])


def test_a_system_differs_from_itself_by_exactly_nothing() -> None:
    references = References(texts(0), resamples=R)
    first, again = (evaluate_outputs(outputs(1), references) for _ in range(2))
    assert {(each.value, each.low, each.high) for each in paired_differences(first, again)} == {(0.0, 0.0, 0.0)}


def test_the_seed_decides_the_resamples_and_nothing_else_does() -> None:
    def interval(seed: int, *, others: bool = False) -> list[MetricValue]:
        references = References(texts(0), resamples=R, seed=seed)
        if others:
            evaluate_outputs(outputs(5), references)
        return evaluate_outputs(outputs(1), references).metrics

    assert interval(0) == interval(0, others=True)
    assert [each.value for each in interval(0)] == [each.value for each in interval(1)]
    assert interval(0) != interval(1)


def test_resampled_means_spread_as_the_standard_error() -> None:
    # sigma / sqrt(n) = 2 / 20; 4,000 resamples know their own spread to 1.1 %, 400 outputs know sigma to 3.5 %
    value_N = np.random.default_rng(0).normal(scale=2, size=400)
    weights = Resamples(num_outputs=400, num_resamples=4000).weights_SN
    assert (weights.sum(1) == 400).all()
    assert (weights[1:] @ value_N / 400).std() == pytest.approx(value_N.std() / 20, rel=0.04)


def test_undefined_metrics_are_absent_with_their_reason_and_so_are_their_differences() -> None:
    references = References(texts(0), resamples=R)
    empty = outputs(1, predictions=[""] * N, reward_sum=None, reward_count=None, agreement={})
    undefined = evaluate_outputs(empty, references)
    found = by_metric(undefined.metrics)
    assert {metric: each.note for metric, each in found.items() if each.value is None} == {
        "bleu_2": "no output has 2 tokens",
        "bleu_4": "no output has 4 tokens",
        "sacrebleu_2": "no output has 2 tokens",
        "sacrebleu_4": "no output has 4 tokens",
        "distinct_1": "every output is empty",
        "distinct_2": "every output is empty",
        "distinct_within_1": "every output is empty",
        "distinct_within_2": "no output has 2 words",
        "repetition": "no output has 4 words",
        "reward": "no output was rewarded",
        "gain": "no output was rewarded",
        **dict.fromkeys(AGREEMENT, "no teacher was asked"),
    }
    whole = evaluate_outputs(outputs(2), references)
    for difference in (paired_differences(whole, undefined), paired_differences(undefined, whole)):
        reward = by_metric(difference)["reward"]
        assert (reward.value, reward.low, reward.high, reward.note) == (None, None, None, "no output was rewarded")
        assert by_metric(difference)["length"].value is not None


def test_there_is_no_interval_where_a_resample_leaves_the_metric_undefined() -> None:
    # one output of 12 is long enough for a 4-gram: about (11/12)^12 = 35 % of the resamples have none
    references = References(texts(0), resamples=R)
    short = evaluate_outputs(outputs(1, predictions=[*["yes no"] * (N - 1), texts(0)[-1]]), references)
    bleu_4 = by_metric(short.metrics)["bleu_4"]
    assert bleu_4.value is not None
    assert (bleu_4.low, bleu_4.high) == (None, None)
    missing = int((references.resamples.weights_SN[1:, -1] == 0).sum())
    assert bleu_4.note.endswith(f"; no interval: undefined in {missing} of {R} resamples")


def test_one_output_has_values_and_no_intervals() -> None:
    found = evaluate_outputs(outputs(1, 1, reward_count=[2]), References(texts(0, 1), resamples=R)).metrics
    assert all(each.value is not None and each.low is None and "one output" in each.note for each in found)


def test_no_resamples_means_no_intervals() -> None:
    found = evaluate_outputs(outputs(1), References(texts(0), resamples=0)).metrics
    assert all(each.low is None and each.high is None and each.n == N for each in found)
    assert summarise("m", np.array([1.0]), num_outputs=3, unit="") == MetricValue(
        metric="m", value=1.0, low=None, high=None, n=3, unit=""
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": texts(1)[1:]}, "there are 11 predictions for 12 references"),
        ({"num_tokens": [1, 2]}, r"num_tokens must have one number for each of 12 outputs, got \(2,\)"),
        ({"reward_sum": [np.nan] * N}, "reward_sum must be finite, got nan"),
        ({"reward_count": None}, "reward_sum and reward_count must be given together"),
        ({"agreement": {"overlap": [0.5]}}, r"overlap must have one number for each of 12 outputs, got \(1,\)"),
        ({"agreement": {"reverse_kl": [np.inf] * N}}, "reverse_kl must be finite, got inf"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_outputs(outputs(1, **changes), References(texts(0), resamples=R))


def test_nothing_to_evaluate_and_unpaired_systems_are_refused() -> None:
    with pytest.raises(ValueError, match="no outputs to evaluate"):
        References([])
    with pytest.raises(ValueError, match="resamples must be 0"):
        References(texts(0), resamples=-1)
    alone = evaluate_outputs(outputs(1), References(texts(0), resamples=R))
    fewer_resamples = evaluate_outputs(outputs(1), References(texts(0), resamples=R - 1))
    fewer_outputs = evaluate_outputs(outputs(1, N - 1), References(texts(0, N - 1), resamples=R))
    for other, sizes in ((fewer_resamples, "12 outputs in 40 resamples and 12 in 39"), (fewer_outputs, "and 11 in 40")):
        with pytest.raises(ValueError, match=sizes):
            paired_differences(alone, other)


def test_a_metric_that_one_side_lacks_has_no_difference() -> None:
    whole = evaluate_outputs(outputs(1), References(texts(0), resamples=R))
    part = Measured(metrics=[each for each in whole.metrics if each.metric == "length"], samples=whole.samples)
    for pair in ((whole, part), (part, whole)):
        assert [each.metric for each in paired_differences(*pair)] == ["length"]


def test_only_the_metrics_asked_for_are_computed_in_one_order_and_unknown_ones_refused() -> None:
    references = References(texts(0), resamples=R)
    found = evaluate_outputs(outputs(1), references, ["length", "wer", "per", "bleu"])
    assert [each.metric for each in found.metrics] == ["bleu_2", "bleu_4", "per", "wer", "length"]
    whole = by_metric(evaluate_outputs(outputs(1), references).metrics)
    assert found.metrics[0] == whole["bleu_2"]
    assert not {"per", "wer"} & set(whole)
    with pytest.raises(ValueError, match=r"metrics must be some of bleu, .*; got meteor"):
        evaluate_outputs(outputs(1), references, ["bleu", "meteor"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"metrics must be some of .*; got none"):
        evaluate_outputs(outputs(1), references, [])


def test_an_output_that_is_drawn_twice_is_not_thereby_equal_to_another() -> None:
    # no two of the first 12 are equal; of the second 12, 4 are: 33.3 %, and a resample has as many as it draws of them
    references = References(texts(0), resamples=R, seed=3)
    apart = by_metric(evaluate_outputs(outputs(1), references, ["equal"]).metrics)["equal"]
    assert (apart.value, apart.low, apart.high) == (0, 0, 0)
    stock = outputs(1, predictions=[*["I do not know ."] * 4, *texts(1)[4:]])
    found = evaluate_outputs(stock, references, ["equal"])
    assert found.metrics[0].value == pytest.approx(100 / 3)
    expected = [100 * sum(row < 4 for row in rows) / N for rows in drawn_rows(references)]
    assert found.samples["equal"][1:] == pytest.approx(expected)
    assert "resamples draw these as they are" in found.metrics[0].note


def test_a_number_that_was_not_taken_of_the_outputs_is_undefined_alone() -> None:
    references = References(texts(0), resamples=R)
    told = {"log_prob": [-1.0] * N, "overlap": None}
    found = by_metric(evaluate_outputs(outputs(1, agreement=told), references).metrics)
    assert found["log_prob"].value == pytest.approx(-N / np.sum(outputs(1).num_tokens))
    assert (found["overlap"].value, found["overlap"].note) == (None, "not measured: the teacher is behind a server")
    assert (found["reverse_kl"].value, found["reverse_kl"].note) == (None, "no teacher was asked")
