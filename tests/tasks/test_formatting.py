"""Numbers as people read them: few digits, units that suit them, dashes for what is not there."""

from __future__ import annotations

import pytest

from tasks.formatting import clock, count, decimals, duration, fixed, interval, plain, probability, short, size


@pytest.mark.parametrize(("values", "digits"), [([0.5, -0.999], 3), ([0.1, -99.9], 2), ([100.0, None], 1), ([], 3)])
def test_a_row_has_the_decimals_of_its_largest_value(values: list[float | None], digits: int) -> None:
    assert decimals(values) == digits


def test_a_fixed_number_has_thousands_apart_and_a_real_minus() -> None:
    assert fixed(-1234.5, 1) == "−1,234.5"
    assert fixed(0.25, 2, sign=True) == "+0.25"


def test_nothing_is_below_zero_that_is_shown_as_zero_but_a_difference() -> None:
    assert [fixed(value, 3) for value in (-0.0004, -0.0, 0.0004, -0.0006)] == ["0.000", "0.000", "0.000", "−0.001"]
    assert interval(-0.0004, 0.0, 3) == "[0.000, 0.000]"
    assert fixed(-0.0004, 3, sign=True) == "−0.000"


@pytest.mark.parametrize(
    ("value", "text"), [(-0.123456, "−0.1235"), (9999.4, "9999"), (20000.0, "20,000"), (1e-7, "1e−07")]
)
def test_a_short_number_has_four_digits(value: float, text: str) -> None:
    assert short(value) == text


def test_what_is_not_there_is_a_dash_or_nothing() -> None:
    dashes = [fixed(None, 2), short(None), count(None), probability(None), duration(None), size(None)]
    assert dashes == ["–"] * 6
    assert interval(None, 1.0, 2) == interval(1.0, None, 2) == ""


def test_intervals_and_probabilities() -> None:
    assert interval(-0.1, 0.25, 2, sign=True) == "[−0.10, +0.25]"
    assert [probability(value) for value in (0.0, 0.0009, 0.0123)] == ["< 0.001", "< 0.001", "0.012"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123, "0.1 s"),
        (9.4, "9.4 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_in_the_unit_that_suits_them(value: float, text: str) -> None:
    assert duration(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65, "1:05"), (7205, "2:00:05")])
def test_a_clock_reads_like_one(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (999_600, "1 MB"), (5.6e9, "5.6 GB")]
)
def test_sizes_are_in_the_unit_that_suits_them(value: float, text: str) -> None:
    assert size(value) == text


def test_what_is_plain_can_be_typed() -> None:
    assert plain(f"{short(-2.5)} {interval(-3.0, -2.0, 1)}") == "-2.5 [-3.0, -2.0]"
