"""Paired differences between systems: in short, and as a forest plot with its numbers in the same rows."""

from collections.abc import Sequence

from tasks.report.charts import whisker
from tasks.report.figures import folded, scrolled
from tasks.report.html import Html, join, tag
from tasks.report.measures import DIRECTIONS, named
from tasks.report.names import REFERENCE_SYSTEMS, decimals, fixed, interval, metric, system
from tasks.report.results import Results, Row
from tasks.report.scales import Scale
from tasks.report.sections import Section

DIFFERENCES = "FROM differences WHERE run = $run"
COMPARED = "FROM comparison_differences WHERE run = $run"
FEW = 60  # differences in one table; more are folded, metric by metric
PLACE = (4.0, 156.0)  # pixels that an interval's line has, with room for its ends
BETTER, WORSE, OTHER, UNDECIDED = "better", "worse", "different", "undecided"


def in_short(results: Results) -> Section | None:
    """The last student against the first, which it started from or is measured by: what is decided, and what is not."""
    rows = [row for row in _differences(results) if not {row["method"], row["baseline"]} & set(REFERENCE_SYSTEMS)]
    if not rows:
        return None
    method, baseline = rows[-1]["method"], rows[0]["baseline"]
    chosen = [row for row in rows if (row["method"], row["baseline"]) == (method, baseline)]
    places = {(row.get("cell"), row.get("x")) for row in chosen}
    if not chosen:
        return None
    facts = _facts(chosen) if len(places) == 1 else _facts_of_grid(chosen)
    lead = (
        f"{system(method)} against {system(baseline)}, on the same inputs of the {chosen[0]['split']} split. "
        "Undecided: the 95 % interval of the difference holds 0."
    )
    return Section("in-short", "In short", tag("dl", {"class": "short"}, facts), lead)


def _facts(rows: Sequence[Row]) -> list[Html]:
    """What is better, what is worse, what is undecided."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(_verdict(row), []).append(row)
    return [
        tag("div", {"class": kind}, tag("dt", kind.capitalize()), tag("dd", _listed(kinds[kind])))
        for kind in (BETTER, WORSE, OTHER, UNDECIDED)
        if kind in kinds
    ]


def _facts_of_grid(rows: Sequence[Row]) -> list[Html]:
    """For each metric, at how many of the grid's places it is better, worse or undecided."""
    names = {row.get("x_name") for row in rows}
    places = f"values of {next(iter(names))}" if len(names) == 1 and None not in names else "cells"
    facts = []
    for name in dict.fromkeys(row["metric"] for row in rows):
        verdicts = [_verdict(row) for row in rows if row["metric"] == name]
        counts = [f"{kind} at {verdicts.count(kind)}" for kind in (BETTER, WORSE, OTHER, UNDECIDED) if kind in verdicts]
        only = verdicts[0] if len(set(verdicts)) == 1 else None
        text = f"{', '.join(counts)} of {len(verdicts)} {places}"
        facts.append(tag("div", {"class": only}, tag("dt", metric(name).label), tag("dd", text)))
    return facts


def differences(results: Results) -> Section | None:
    """Every paired difference with its interval on a line, metric by metric."""
    rows = _differences(results)
    if not rows:
        return None
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["metric"], []).append(row)
    corrected = any(row.get("p_corrected") is not None for row in rows)
    end = "p is corrected for the number of comparisons." if corrected else "Of many rows, some do so by chance."
    lead = (
        "Both systems on the same inputs, so that what is hard for both cancels out. Where the 95 % interval excludes "
        f"0 the mark is filled, and a word says so. {end}"
    )
    return Section("differences", "Paired differences", _tables(groups, corrected), lead)


def _differences(results: Results) -> list[Row]:
    compared = results.ask("comparison_differences", COMPARED)
    rows = compared or results.ask("differences", DIFFERENCES)
    return named([row for row in rows if row["value"] is not None])


def _listed(rows: Sequence[Row]) -> str:
    return ", ".join(
        f"{metric(row['metric']).label} {fixed(row['value'], decimals([row['value']]), sign=True)}" for row in rows
    )


def _verdict(row: Row) -> str:
    low, high, direction = row["low"], row["high"], metric(row["metric"]).better
    if low is None or high is None or low <= 0 <= high:
        return UNDECIDED
    if not direction:
        return OTHER
    return BETTER if (low > 0) == (direction > 0) else WORSE


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
    return sum(_verdict(row) != UNDECIDED for row in rows)


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
    low, high, verdict = row["low"], row["high"], _verdict(row)
    direction = "" if verdict == UNDECIDED else "higher, " if low > 0 else "lower, "
    p_value = row.get("p_corrected")
    p_text = "–" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
    cells = [
        whisker(row["value"], low, high, scale),
        fixed(row["value"], digits, sign=True),
        interval(low, high, digits, sign=True),
        *([p_text] if corrected else []),
        tag("span", {"class": f"verdict {verdict}"}, direction + verdict),
    ]
    name = f"{row['system']} − {system(row['baseline'])}"
    return tag("tr", tag("th", {"scope": "row"}, name), [tag("td", each) for each in cells])
