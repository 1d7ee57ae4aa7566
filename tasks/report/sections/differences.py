"""Paired differences between systems: what is decided, and a forest plot with its numbers in the same rows."""

from collections.abc import Sequence

from tasks.formatting import decimals, fixed, interval, probability
from tasks.report.charts import whisker
from tasks.report.figures import folded, scrolled
from tasks.report.html import Html, join, tag
from tasks.report.names import metric, system
from tasks.report.results import Results, Row
from tasks.report.scales import Scale
from tasks.report.section import Section
from tasks.report.sections.measures import DIRECTIONS, named

DIFFERENCES = "FROM differences WHERE run = $run"
COMPARED = "FROM comparison_differences WHERE run = $run"
FEW = 75  # differences in one table; more are folded, metric by metric
PLACE = (4.0, 156.0)  # pixels that an interval's line has, with room for its ends
LEVEL = 0.05  # corrected p below which a difference is decided
CORRECTED = f"A word says so where p, corrected by Holm for all differences of the metric here, is below {LEVEL}."
UNCORRECTED = "A word says so then too; of many rows, some do so by chance."
BETTER, WORSE, OTHER, UNDECIDED = "better", "worse", "different", "undecided"


def differences(results: Results) -> Section | None:
    """Every paired difference with its interval on a line, metric by metric."""
    rows = all_differences(results)
    if not rows:
        return None
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["metric"], []).append(row)
    corrected = any(row.get("p_corrected") is not None for row in rows)
    lead = (
        "Both systems on the same inputs, so that what is hard for both cancels out. The mark is filled where the 95 % "
        f"interval excludes 0. {CORRECTED if corrected else UNCORRECTED}"
    )
    return Section("differences", "Paired differences", _tables(groups, corrected), lead)


def all_differences(results: Results) -> list[Row]:
    """A comparison's differences, or else the run's own; what is undefined is left out."""
    compared = results.ask("comparison_differences", COMPARED)
    rows = compared or results.ask("differences", DIFFERENCES)
    return named([row for row in rows if row["value"] is not None])


def verdict(row: Row) -> str:
    """Better or worse than the baseline, different where no direction is better, or undecided."""
    if not decided(row):
        return UNDECIDED
    direction = metric(row["metric"]).better
    if not direction:
        return OTHER
    return BETTER if (row["value"] > 0) == (direction > 0) else WORSE


def decided(row: Row) -> bool:
    """Whether chance is ruled out: by the corrected p where there is one, else by the 95 % interval."""
    low, high, p_value = row["low"], row["high"], row.get("p_corrected")
    if p_value is not None:
        return bool(p_value < LEVEL)
    return low is not None and high is not None and not low <= 0 <= high


def _tables(groups: dict[str, list[Row]], corrected: bool) -> Html:
    if sum(map(len, groups.values())) <= FEW:
        return _table([_group(name, rows, corrected) for name, rows in groups.items()], corrected, "Paired differences")
    return join(
        [
            folded(
                f"{metric(name).label}: {len(rows)} differences, {_decided(rows)} decided",
                _table([_group(name, rows, corrected)], corrected, f"Paired differences in {metric(name).label}"),
            )
            for name, rows in groups.items()
        ]
    )


def _decided(rows: Sequence[Row]) -> int:
    return sum(verdict(row) != UNDECIDED for row in rows)


def _table(groups: Sequence[Html], corrected: bool, caption: str) -> Html:
    headers = ["difference", "95 % interval", "value", "from … to", *(["p"] if corrected else []), "verdict"]
    head = tag("thead", tag("tr", [tag("th", {"scope": "col"}, header) for header in headers]))
    inner = tag("table", {"class": "forest"}, tag("caption", {"class": "unseen"}, caption), head, groups)
    return scrolled(inner, caption)


def _group(name: str, rows: list[Row], corrected: bool) -> Html:
    """The rows of one metric under a line that names it and the ends of its scale, which all of them share."""
    digits = decimals(row["value"] for row in rows)
    bounds = [abs(bound) for row in rows for bound in (row["value"], row["low"], row["high"]) if bound is not None]
    reach = max(bounds) or 1.0
    scale = Scale(-reach, reach, *PLACE)
    unit, known = next((row["unit"] for row in rows if row["unit"]), ""), metric(name)
    about = ", ".join(part for part in (unit, DIRECTIONS[known.better]) if part)
    ends = tag("span", {"class": "ends"}, *(tag("span", fixed(end, digits, sign=True)) for end in (-reach, reach)))
    title = tag(
        "tr",
        tag("th", {"scope": "rowgroup"}, known.label),
        tag("td", ends),
        tag("td", {"colspan": 4 if corrected else 3, "class": "about-metric"}, about),
    )
    return tag("tbody", title, [_row(row, digits, scale, corrected) for row in rows])


def _row(row: Row, digits: int, scale: Scale, corrected: bool) -> Html:
    low, high, word = row["low"], row["high"], verdict(row)
    direction = "" if word == UNDECIDED else "higher, " if row["value"] > 0 else "lower, "
    cells = [
        whisker(row["value"], low, high, scale),
        fixed(row["value"], digits, sign=True),
        interval(low, high, digits, sign=True),
        *([probability(row.get("p_corrected"))] if corrected else []),
        tag("span", {"class": f"verdict {word}"}, direction + word),
    ]
    name = f"{row['system']} − {system(row['baseline'])}"
    return tag("tr", tag("th", {"scope": "row"}, name), [tag("td", each) for each in cells])
