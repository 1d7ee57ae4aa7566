"""G-Eval: what is asked, what is read in a reply, its Eq. 1 and the normalisation, by values worked out by hand."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_core.metrics.bootstrap import Measure, MetricValue, Resamples, summarise
from kd_core.metrics.g_eval.prompt import CRITERIA, GRAMMAR, criteria_of, judge_messages
from kd_core.metrics.g_eval.reply import Reply, Verdict, expected_score, judged, read_reply, unit_score, written_score
from kd_core.metrics.g_eval.scores import METRICS, g_eval_shares, no_g_eval, normalised_g_eval, windows_to_judge


def logs(**probabilities: float) -> dict[str, float]:
    """`s4` stands for the token 4."""
    return {token.removeprefix("s"): math.log(p) for token, p in probabilities.items()}


def completion(
    text: str | None, tokens: list[tuple[Any, ...]] | None = None, *, finish: str = "stop", **message: Any
) -> Any:
    """A chat completion as it comes over the wire. tokens: (text or bytes, alternatives) of each."""
    logprobs = None
    if tokens is not None:
        entries = []
        for piece, top in tokens:
            raw = piece if isinstance(piece, bytes) else piece.encode()
            shown = raw.decode(errors="replace")
            tops = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in top.items()]
            own = top.get(shown, -0.1)
            entries.append({"token": shown, "bytes": list(raw), "logprob": own, "top_logprobs": tops})
        logprobs = {"content": entries}
    choice = {"message": {"role": "assistant", "content": text} | message, "finish_reason": finish}
    return json.loads(json.dumps({"choices": [choice | {"logprobs": logprobs}]}))


# what is asked


def test_the_prompt_holds_the_criteria_the_texts_and_the_form() -> None:
    [message] = judge_messages("It was {dark}.", "The wolf %s howled.", criteria_of("asoif"))
    assert message["role"] == "user"
    text = message["content"]
    for criterion in (*CRITERIA["asoif"], GRAMMAR):
        assert f"\n- {criterion}\n" in text
    assert "<initial_prompt>\nIt was {dark}.\n</initial_prompt>" in text
    assert "<continuation>\nThe wolf %s howled.\n</continuation>" in text
    assert text.endswith("Score: <integer from 1 to 5>")


def test_the_criteria_are_as_many_as_in_table_1() -> None:
    assert {name: len(each) for name, each in CRITERIA.items()} == {
        "asoif": 3,
        "xfiles": 5,
        "stargate": 4,
        "fringe": 4,
        "doctor-who": 4,
        "papers": 4,
    }


def test_criteria_may_be_a_text_of_ones_own() -> None:
    assert criteria_of("Is it funny?\n\n  Does it rhyme? ") == ("Is it funny?", "Does it rhyme?")


@pytest.mark.parametrize(("wrong", "hint"), [("xfile", "did you mean xfiles"), ("", "sentences of your own")])
def test_a_misspelt_name_is_no_criterion(wrong: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"criteria must be one of asoif, .*{hint}"):
        criteria_of(wrong)


# the score as written


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It fits.\nScore: 4", 4),
        ("**Score:** 4", 4),
        ("**Score**: **4**", 4),
        ("Overall score (1-5): 4/5.", 4),
        ("score = 4", 4),
        ("Score: <4>", 4),
        ("Score: 4.5", 4.5),
        ("Score: 2 for style.\nScore: 3", 3),  # the last is the one that was asked for
        ("It says 'Score: 5'.\nScore: 1\n", 1),
        ("3", 3),
        (" **3**. ", 3),
        ("Score: 0", None),
        ("Score: 6", None),
        ("Score: 45", None),
        ("Score: -1", None),
        ("Score: 4/10", None),
        ("Score: 4-5", None),
        ("Score: 4 – 5", None),
        ("Score: four", None),
        ("I would give it a 4", None),
        ("", None),
    ],
)
def test_the_written_score(text: str, score: float | None) -> None:
    assert written_score(text) == score


# the expected score: G-Eval's Eq. 1


def test_the_expected_score_worked_out_by_hand() -> None:
    # .25 * 3 + .5 * 4 + .25 * 5 = 4
    assert expected_score(logs(s3=0.25, s4=0.5, s5=0.25)) == pytest.approx(4.0, abs=1e-12)
    # (.4 * 4 + .4 * 5) / .8 = 4.5: the token "x" is no score, and its mass lowers nothing
    assert expected_score(logs(s4=0.4, s5=0.4, x=0.2)) == pytest.approx(4.5, abs=1e-12)
    # " 4" is the score 4 too: (.25 * 4 + .25 * 4 + .5 * 1) / 1 = 2.5
    assert expected_score({" 4": math.log(0.25), "4": math.log(0.25), "1": math.log(0.5)}) == pytest.approx(2.5)


def test_what_is_no_score_on_the_scale_does_not_count() -> None:
    assert expected_score(logs(s6=0.5, s0=0.4, s45=0.05)) is None
    assert expected_score({}) is None


def test_probabilities_too_small_for_a_float_still_weigh() -> None:
    assert expected_score({"2": -2000.0, "4": -2000.0}) == pytest.approx(3.0)


@given(st.dictionaries(st.sampled_from(["1", "2", "3", "4", "5"]), st.floats(-30, 0), min_size=1), st.floats(-5, 5))
def test_the_expectation_is_the_slow_one_within_the_scale_and_free_of_constants(
    log_probs: dict[str, float], shift: float
) -> None:
    above = below = 0.0
    for score in (1, 2, 3, 4, 5):
        p = math.exp(log_probs[str(score)]) if str(score) in log_probs else 0.0
        above, below = above + p * score, below + p
    found = expected_score(log_probs)
    assert found == pytest.approx(above / below, rel=1e-9)
    assert found is not None
    assert 1 - 1e-9 <= found <= 5 + 1e-9
    assert expected_score({token: value + shift for token, value in log_probs.items()}) == pytest.approx(found)


def test_the_scale_ends_at_0_and_1() -> None:
    assert [unit_score(score) for score in (1, 2, 3, 4, 5)] == [0, 0.25, 0.5, 0.75, 1]


# a reply, from the wire to the verdict


def test_a_reply_with_log_probabilities_is_weighted_where_its_score_stands() -> None:
    tokens = [
        ("4 words. ", logs(s4=0.9, s1=0.1)),  # a number, but not the score
        ("Score", {}),
        (":", {}),
        (" 4", {" 4": math.log(0.5), " 3": math.log(0.5)}),
        ("<end>", logs(s1=1.0)),  # some servers list the end of sequence, which is not in the text
    ]
    verdict = judged(read_reply(completion("4 words. Score: 4", tokens)))
    assert verdict == Verdict(score=pytest.approx(0.625), outcome="weighted", text="4 words. Score: 4")  # (3.5 - 1) / 4


def test_the_place_is_found_behind_characters_that_are_split_over_tokens() -> None:
    tokens = [("caf", {}), (b"\xc3", {}), (b"\xa9 ", {}), ("Score: ", {}), ("2", logs(s2=0.75, s4=0.25))]
    verdict = judged(read_reply(completion("café Score: 2", tokens)))
    assert (verdict.outcome, verdict.score) == ("weighted", pytest.approx(0.375))  # 2.5 -> 1.5 / 4


def test_the_token_that_was_written_counts_also_if_it_is_not_among_the_most_probable() -> None:
    payload = completion("Score: 1", [("Score: ", {}), ("1", logs(s5=0.9))])
    payload["choices"][0]["logprobs"]["content"][1]["logprob"] = math.log(0.1)
    assert judged(read_reply(payload)).score == pytest.approx(0.9)  # .9 * 1 + .1 * 0


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Score: 4", None),
        ("Score: 4", [("Score", {}), (": 4", logs(s1=1.0))]),  # the score is no token by itself
        ("Score: 4", []),
        ("Score: 3.5", [("Score: ", {}), ("3", logs(s1=1.0)), (".5", {})]),
        ("Score: 4", [("Score: ", {}), ("4", {"4": -math.inf})]),
    ],
)
def test_without_usable_log_probabilities_the_score_stands_as_written(text: str, tokens: Any) -> None:
    verdict = judged(read_reply(completion(text, tokens)))
    assert (verdict.outcome, verdict.score) == ("written", {"4": 0.75, "5": 0.625}[text[-1]])


@pytest.mark.parametrize("logprobs", ["yes", {"content": "no"}, {"content": [{"token": "Score: 4"}]}, [], {}])
def test_malformed_log_probabilities_count_as_none(logprobs: Any) -> None:
    payload = completion("Score: 5")
    payload["choices"][0]["logprobs"] = logprobs
    assert judged(read_reply(payload)) == Verdict(score=1.0, outcome="written", text="Score: 5")


@pytest.mark.parametrize(
    ("payload", "outcome", "reason"),
    [
        (completion(None, refusal="I will not."), "refused", "refused: I will not."),
        (completion("Score: 5", finish="content_filter"), "refused", "content filter"),
        (completion("I'm sorry, but I can't help with that."), "refused", "in words"),
        (completion("As an AI, I cannot rate this."), "refused", "in words"),
        (completion("I am unable to judge it."), "refused", "in words"),
        (completion("The style is dark"), "unparsed", "no score"),
        (completion("Its style is dark. " * 9 + "'I'm sorry' is modern."), "unparsed", "no score"),
        (completion("The style is", finish="length"), "unparsed", "cut off"),
        (completion(None), "unparsed", "empty"),
        (completion("Score: 11"), "unparsed", "no score"),
    ],
)
def test_no_score_is_never_a_score_of_0(payload: Any, outcome: str, reason: str) -> None:
    verdict = judged(read_reply(payload))
    assert (verdict.score, verdict.outcome) == (None, outcome)
    assert reason in verdict.reason


def test_a_judge_that_apologises_and_scores_has_scored() -> None:
    assert judged(Reply(text="I'm sorry, it is poor.\nScore: 2")).score == 0.25


@pytest.mark.parametrize(
    "payload", [None, [], "hello", {}, {"choices": []}, {"choices": "abc"}, {"choices": [{"message": None}]},
                {"choices": [{"message": {"content": 3}}]}, {"choices": [{"message": {"content": [{"text": "a"}]}}]}]
)  # fmt: skip
def test_what_is_no_chat_completion_is_said_to_be_none(payload: Any) -> None:
    with pytest.raises(ValueError, match="not a chat completion"):
        read_reply(payload)


# measures


def values(measures: list[Measure], resamples: int = 0) -> dict[str, MetricValue]:
    number = len(measures[0].columns_NK)
    found = Resamples(num_outputs=number, num_resamples=resamples).values(measures)
    return {
        each.metric: summarise(
            each.metric,
            found[each.metric],
            num_outputs=number,
            unit=each.unit,
            undefined=each.undefined,
            note=each.note,
        )
        for each in measures
    }


def test_normalised_by_the_true_continuations_of_the_windows_with_both_scores() -> None:
    # both scores: windows 0 and 2. (.25 + .5) / (1 + .5) = 50 %
    found = values(normalised_g_eval([0.25, 0.9, 0.5, None], [1.0, None, 0.5, 0.1]))
    assert found["g_eval"].value == pytest.approx(0.375)
    assert found["g_eval_true"].value == pytest.approx(0.75)
    assert found["g_eval_normalised"].value == pytest.approx(50.0)
    assert found["g_eval_normalised"].note == "over the 2 of 4 windows where both continuations have a score"


def test_intervals_are_those_of_the_ratio_of_resampled_sums() -> None:
    rng = np.random.default_rng(0)
    ours, true = rng.random(50), 0.5 + rng.random(50) / 2
    ours_given = [None if i % 7 == 0 else float(x) for i, x in enumerate(ours)]
    found = values(normalised_g_eval(ours_given, true.tolist()), resamples=300)["g_eval_normalised"]
    ratios = []
    for weights in Resamples(num_outputs=50, num_resamples=300).weights_SN[1:]:
        rows = [i for i in np.repeat(np.arange(50), weights) if i % 7]
        ratios.append(100 * ours[rows].sum() / true[rows].sum())
    assert [found.low, found.high] == pytest.approx(np.quantile(ratios, [0.025, 0.975]).tolist())


def test_undefined_with_its_reason() -> None:
    found = values(normalised_g_eval([None, 0.5], [0.5, None]))
    assert {each.value for each in found.values()} == {None}
    assert found["g_eval"].note == "no window has a score of both the continuation and the true one"
    found = values(normalised_g_eval([0.5], [0.0]))
    assert found["g_eval"].value == 0.5
    assert (found["g_eval_normalised"].value, found["g_eval_normalised"].note) == (
        None,
        "every true continuation has the lowest score",
    )


@pytest.mark.parametrize(
    ("ours", "true", "message"),
    [([0.5], [0.5, 0.5], "1 scores of the system for 2"), ([1.5], [0.5], "must be in \\[0, 1\\], got 1.5"),
     ([0.5], [math.nan], "got nan")],
)  # fmt: skip
def test_scores_that_cannot_be_are_refused(ours: list[float], true: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalised_g_eval(ours, true)


def test_shares_of_what_was_asked() -> None:
    verdicts = [
        Verdict(score=0.5, outcome="weighted"),
        Verdict(score=0.5, outcome="written"),
        Verdict(score=None, outcome="refused"),
        Verdict(score=None, outcome="unparsed"),
        Verdict(score=None, outcome="unparsed"),
        None,
    ]
    found = values(g_eval_shares(verdicts))
    assert found["g_eval_refused"].value == pytest.approx(20.0)
    assert found["g_eval_unparsed"].value == pytest.approx(40.0)
    assert found["g_eval_refused"].note == "5 judged, 1 of them weighted by token probabilities"


def test_absent_metrics_say_why_and_are_the_same_ones() -> None:
    absent = no_g_eval("no judge is configured", 7)
    assert {(each.value, each.low, each.high, each.n, each.note) for each in absent} == {
        (None, None, None, 7, "no judge is configured")
    }
    there = values([*normalised_g_eval([0.5], [0.5]), *g_eval_shares([None])])
    assert {each.metric: each.unit for each in absent} == {name: each.unit for name, each in there.items()} == METRICS


@given(st.integers(0, 500), st.integers(1, 60))
def test_windows_to_judge_are_spread_evenly(num_windows: int, most: int) -> None:
    chosen = windows_to_judge(num_windows, most)
    assert len(chosen) == min(num_windows, most)
    assert sorted(set(chosen)) == chosen
    assert all(0 <= i < num_windows for i in chosen)
    gaps = np.diff([*chosen, num_windows]) if chosen else [0]
    assert max(gaps) - min(gaps) <= 1
