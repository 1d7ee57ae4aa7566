"""Signs of collapse: each said once, measured against the student's start or the data set's texts."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_core.train.state import StepMetrics
from tasks.compute.alarms import Alarms, limit

START = {
    **{f"validation_{kind}{name}": value for kind in ("", "sampled_") for name, value in (
        ("equal", 0.05), ("distinct_2", 0.8), ("repetition", 0.02), ("truncated", 0.1), ("length", 20.0)
    )},
    "validation_overlap": 0.6,
    "validation_teacher_entropy": 2.0,
    "validation_text_teacher_entropy": 1.9,
}  # fmt: skip


def said(now: dict[str, float], start: dict[str, float] = START) -> list[str]:
    heard: list[str] = []
    alarms = Alarms(heard.append)
    for step, values in ((0, start), (5, {"loss": 1.0}), (10, start | now), (20, start | now)):
        alarms.look(StepMetrics(step, values))
    return heard


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"validation_equal": 0.6}, "60% of the greedy outputs are equal to another (5% at the start)"),
        ({"validation_sampled_equal": 0.31}, "31% of the sampled outputs are equal to another (5% at the start)"),
        ({"validation_distinct_2": 0.3}, "distinct bigrams of greedy outputs fell from 80% to 30%"),
        ({"validation_repetition": 0.5}, "greedy outputs repeat 50% of their 4-grams (2% at the start)"),
        ({"validation_truncated": 0.9}, "90% of the greedy outputs hit the length limit (10% at the start)"),
        ({"validation_sampled_length": 11.0}, "sampled outputs went from 20.0 to 11.0 tokens"),
        ({"validation_length": 40.0}, "greedy outputs went from 20.0 to 40.0 tokens"),
        ({"validation_overlap": 0.4}, "teacher and student share 40% of the likeliest tokens (60% at the start)"),
        (
            {"validation_teacher_entropy": 3.5},
            "the teacher is lost on the student's words: its entropy is 3.50 nats there, and 1.90 on the data set's",
        ),
    ],
)
def test_each_sign_is_said_once(now: dict[str, float], says: str) -> None:
    assert said(now) == [f"after update 10: {says}"]


def test_a_healthy_training_says_nothing() -> None:
    assert said({"validation_equal": 0.1, "validation_length": 16.0, "validation_overlap": 0.7}) == []


def test_what_is_odd_from_the_start_is_no_collapse() -> None:
    stock_replies = START | {"validation_equal": 0.5, "validation_truncated": 0.8}
    assert said({"validation_equal": 0.7}, stock_replies) == []
    assert said({"validation_equal": 1.0}, stock_replies) == [
        "after update 10: 100% of the greedy outputs are equal to another (50% at the start)"
    ]


@pytest.mark.parametrize(
    ("sign", "ordinary", "odd"),
    [
        ("equal", 0.29, 0.31),
        ("distinct_2", 0.41, 0.39),  # half of the start's
        ("repetition", 0.19, 0.21),
        ("truncated", 0.49, 0.51),
        ("length", 12.1, 11.9),
        ("length", 31.9, 32.1),
        ("overlap", 0.51, 0.49),
        ("teacher_entropy", 2.84, 2.86),  # one and a half times that on the texts
    ],
)
def test_a_sign_is_where_the_documentation_draws_it(sign: str, ordinary: float, odd: float) -> None:
    assert said({f"validation_{sign}": ordinary}) == []
    assert len(said({f"validation_{sign}": odd})) == 1


def test_a_share_may_double_or_lose_half_of_what_was_left() -> None:
    assert [limit(0.3, before) for before in (0.05, 0.2, 0.5)] == [0.3, 0.4, 0.75]


def test_what_is_not_measured_is_no_sign() -> None:
    """A teacher behind a server shows no overlap, and labels in its place no entropy either."""
    missing = ("validation_overlap", "validation_teacher_entropy", "validation_text_teacher_entropy")
    start = {name: value for name, value in START.items() if name not in missing}
    assert said({}, start) == []
    assert len(said({"validation_equal": 0.6}, start)) == 1


def test_a_teacher_lost_at_the_start_is_said_there() -> None:
    lost = START | {"validation_teacher_entropy": 4.0}
    assert said({}, lost)[0].startswith("before any update: the teacher is lost")


@pytest.mark.parametrize(
    ("start", "now"),
    [
        ({"validation_sampled_distinct_2": 0.004}, {"validation_sampled_distinct_2": 0.001}),
        ({"validation_equal": 0.996}, {"validation_equal": 0.999}),
        ({"validation_sampled_truncated": 0.996}, {"validation_sampled_truncated": 1.0}),
        ({"validation_length": 0.04}, {"validation_length": 0.0}),
        ({"validation_text_teacher_entropy": 0.001}, {"validation_teacher_entropy": 0.004}),
        ({"validation_text_teacher_entropy": -1e-7}, {"validation_teacher_entropy": 1e-7}),
    ],
)
def test_no_alarm_tells_of_a_change_that_its_own_numbers_do_not_show(
    start: dict[str, float], now: dict[str, float]
) -> None:
    assert said(now, START | {"validation_teacher_entropy": 0.0} | start) == []


@given(*(st.fixed_dictionaries({name: st.floats(0, 1) for name in START}) for _ in range(2)))
@settings(deadline=None)
def test_every_alarm_shows_two_numbers_that_differ_and_falls_only_downwards(
    start: dict[str, float], now: dict[str, float]
) -> None:
    for words in said(now, start):
        before, after = re.findall(r"(?<!update )-?\d+(?:\.\d+)?(?=%|\s)", words.replace("4-grams", ""))[-2:]
        assert before != after, words
        assert "fell" not in words or float(before) > float(after), words
