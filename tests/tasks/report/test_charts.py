"""The report's plots: where things are drawn, round ticks, shapes and colours that can be told apart and read."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.report import names
from tasks.report.charts import Level, Panel, Point, Series, describe, lines, whisker
from tasks.report.figures import numbers, panels_figure, points, thinned
from tasks.report.marks import SHAPES, marker
from tasks.report.page import STYLE
from tasks.report.scales import Scale, fitted, tick_labels, ticks
from tasks.report.sections.rollouts import Colours
from tests.tasks.report.html_tree import parse

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


# --- scales


@given(FINITE, st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_evenly_spaced_and_inside(low: float, width: float, number: int) -> None:
    assume(width >= 1e-9 * abs(low))  # a narrower range has no room for round numbers between its float64 ends
    high = low + width
    found = ticks(low, high, number)
    slack = 1e-6 * width
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert len(found) <= number + 2
    for a, b in pairwise(found):
        mantissa = (b - a) / 10 ** math.floor(math.log10((b - a) * 1.0001))
        assert min(abs(mantissa - each) for each in (1, 2, 5, 10)) < 0.02


def test_ticks_and_their_labels_worked_out_by_hand() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(-30, 90, 4) == [0, 50]  # 30 apart is rounded up to 50
    assert ticks(1, 3, 5, whole=True) == [1, 2, 3]  # there is no round 1.5
    assert tick_labels([-0.5, 0.0, 0.5]) == ["−0.5", "0.0", "0.5"]
    assert tick_labels([0.0, 1000.0, 2000.0]) == ["0", "1,000", "2,000"]


def test_a_scale_puts_values_where_they_belong() -> None:
    scale = Scale(0.0, 10.0, 100.0, 0.0)  # upwards, as SVG's y does not go
    assert (scale(0), scale(10), scale(2.5)) == (100.0, 0.0, 75.0)


@given(st.lists(st.one_of(st.none(), st.just(math.nan), st.just(math.inf), FINITE)))
def test_a_fitted_scale_holds_every_finite_value(values: list[float | None]) -> None:
    scale = fitted(values, 0.0, 100.0)
    assert scale.high > scale.low
    assert all(0 <= scale(value) <= 100 for value in values if value is not None and math.isfinite(value))


# --- plots


def test_a_line_goes_through_its_points_and_its_band_around_them() -> None:
    series = Series("LLMR", 2, [Point(0, 1, 0, 2), Point(1, 3, 2, 4)])
    drawn = parse(lines(Panel("Loss", "step", "loss", [series], [Level("Teacher", 0, 2.0)])))
    (line,) = [node for node in drawn.all("path", class_="line") if "L" in (node.attributes["d"] or "")]
    (x0, y0), (x1, y1) = [tuple(map(float, pair.split())) for pair in (line.attributes["d"] or "")[1:].split("L")]
    (band,) = drawn.all("path", class_="band")
    corners = [tuple(map(float, pair.split())) for pair in (band.attributes["d"] or "")[1:-1].split("L")]
    assert x0 < x1
    assert y0 > y1
    assert [x for x, _ in corners] == [x0, x1, x1, x0]
    for (_, upper), middle, (_, lower) in ((corners[0], y0, corners[3]), (corners[1], y1, corners[2])):
        assert middle == pytest.approx((upper + lower) / 2, abs=0.2)
    assert [node.text for node in drawn.all("title")] == [
        "Loss",
        "LLMR 0: 1",
        "LLMR 1: 3",
    ]  # its own, and each marker's


def test_a_description_has_the_ends_and_the_extremes() -> None:
    panel = Panel(
        "", "step", "loss", [Series("LLMR", 1, [Point(1, 5.0), Point(2, 1.0), Point(3, 2.0)])], [Level("T", 0, 9)]
    )
    assert describe(panel) == ("loss against step. LLMR: from 5 at 1 to 2 at 3; lowest 1, highest 5. T: 9 throughout.")


def test_names_of_lines_across_do_not_lie_over_one_another() -> None:
    levels = [Level("start, greedy", 9, 2.0), Level("start, sampled", 9, 2.0), Level("references", 0, 1.0)]
    drawn = parse(lines(Panel("", "step", "nats", [Series("", 1, [Point(0, 0.0), Point(1, 3.0)])], levels)))
    tops = [(node.text, float(node.attributes["y"] or "")) for node in drawn.all("text", class_="name")]
    assert [name for name, _ in tops] == ["start, greedy", "start, sampled", "references"]
    assert all(lower - upper >= 12 for (_, upper), (_, lower) in pairwise(tops))
    (above,) = {node.attributes["d"] for node in drawn.one("g", class_="s0").all("path")}
    assert f" {tops[2][1] + 4:g}H" in (above or "")  # where there is room, a name is right above its line


def test_how_to_read_a_panel_stands_below_it() -> None:
    panel = Panel("Equal", "step", "share", [Series("", 1, [Point(0, 0.0), Point(1, 1.0)])], note="it <climbs>")
    drawn = parse(panels_figure("Two panels", [panel, replace(panel, note="")]))
    assert [[node.text for node in each.all("p", class_="note")] for each in drawn.all("div", class_="plot")] == [
        ["it <climbs>"],
        [],
    ]


def test_an_interval_that_excludes_0_is_filled() -> None:
    scale = Scale(-1, 1, 0, 100)
    assert "decided" in whisker(0.5, 0.1, 0.9, scale)
    assert "decided" not in whisker(0.5, -0.1, 0.9, scale)
    assert "decided" not in whisker(0.5, None, None, scale)


def test_points_leave_out_what_is_undefined() -> None:
    rows = [
        {"x": 2, "value": 1.0, "low": math.nan},
        {"x": 1, "value": 3.0},
        {"x": 3, "value": None},
        {"x": None, "value": 1},
    ]
    assert points(rows, "x") == [Point(1, 3.0), Point(2, 1.0)]


def test_the_numbers_behind_a_figure_are_all_there_or_thinned_out_with_a_word() -> None:
    def table(count: int) -> tuple[str, list[list[str]]]:
        series = Series("LLMR", 1, [Point(k, k / 2) for k in range(count)])
        found = parse(numbers([Panel("Loss", "step", "loss", [series])])).one("table")
        return found.one("caption").text, found.rows()[1:]

    assert table(3) == ("all points", [["LLMR", "0", "0"], ["LLMR", "1", "0.5"], ["LLMR", "2", "1"]])
    caption, rows = table(500)
    assert caption == "60 of 500 points, evenly spread"
    assert (rows[0][1], rows[-1][1], len(rows)) == ("0", "499", 60)


@given(st.lists(st.integers(), unique=True), st.integers(2, 20))
def test_thinning_keeps_order_and_ends(items: list[int], number: int) -> None:
    kept = thinned(items, number)
    assert len(kept) == min(len(items), number)
    assert [item for item in items if item in kept] == kept
    assert kept[:1] + kept[-1:] == items[:1] + items[-1:]


def test_markers_can_be_told_apart_without_colour() -> None:
    drawn = [marker(style, 10, 10) for style in range(1, names.NUM_STYLES + 1)]
    assert len(set(drawn)) == names.NUM_STYLES
    assert set(SHAPES) == {*range(2, names.NUM_STYLES + 1), names.UNTRAINED}


# --- names and colours


def test_styles_are_each_systems_own_and_references_are_neutral() -> None:
    found = names.styles(["teacher", "seqkd", "student", "llmr", "seqkd"])
    assert found == {"teacher": names.TEACHER, "seqkd": 1, "student": names.UNTRAINED, "llmr": 2}


@pytest.mark.parametrize(
    ("name", "better"),
    [("bleu_2", 1), ("perplexity", -1), ("length", 0), ("validation_reward", 1), ("some_loss", -1), ("grad_norm", 0)],
)
def test_which_direction_is_better(name: str, better: int) -> None:
    assert names.metric(name).better == better


def test_a_tokens_colour_goes_from_end_to_end() -> None:
    colours = Colours(centre=1.0, reach=2.0)
    assert [colours.step(value) for value in (-9, -1, 1, 2, 3, 9)] == [-4, -4, 0, 2, 4, 4]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(theme: int) -> None:
    found = re.findall(r"(--[\w-]+): light-dark\((#\w+), (#\w+)\)", STYLE.read_text())
    colour = {name: (light, dark)[theme] for name, light, dark in found if name not in ("--b", "--t")}
    for text in ("--ink", "--quiet", "--accent", "--good", "--bad"):
        for paper in ("--paper", "--card"):
            assert contrast(colour[text], colour[paper]) >= 4.5, (text, paper)  # WCAG 1.4.3
    assert contrast(colour["--ink"], colour["--warn-paper"]) >= 4.5
    for style in range(names.NUM_STYLES + 1):
        assert contrast(colour[f"--c{style}"], colour["--card"]) >= 3, style  # WCAG 1.4.11
    own = {
        int(k): pair[theme]
        for k, *pair in re.findall(r"\.b(-?\d) \{[^}]*--t: light-dark\((#\w+), (#\w+)\)", STYLE.read_text())
    }
    for step in range(-4, 5):
        assert contrast(own.get(step, colour["--ink"]), colour[f"--b{step}"]) >= 4.5, step


def contrast(a: str, b: str) -> float:
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05), with the lighter one's relative luminance above."""
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
