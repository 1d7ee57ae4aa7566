"""Training curves: every logged value of a run, and of a comparison what tells its methods apart, over their seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.report.charts import Panel, Point, Series
from tasks.report.figures import folded, panels_figure, points
from tasks.report.html import Html, join, tag
from tasks.report.names import metric, system
from tasks.report.results import Results, Row
from tasks.report.section import Section

MOST_POINTS = 8_000  # of all curves of a page
CURVE_POINTS = (16, 120)  # of one curve, at least and at most; longer ones are means of as many equal parts
MOST_STAGES = 16  # that are drawn
MOST_PANELS = 12

CURVES = """
WITH spread AS (
    SELECT stage, label, key, metric, step, value,
           ntile({parts}) OVER (PARTITION BY stage, label, key, metric ORDER BY step) AS part
    FROM training_log WHERE run = $run AND isfinite(value) AND {wanted}
)
SELECT stage, label, key, metric, part, max(step) AS step, avg(value) AS value, count(*) AS merged
FROM spread GROUP BY stage, label, key, metric, part ORDER BY stage, label, key, metric, part
"""
COUNT = "SELECT count(DISTINCT (label, key, metric)) AS n FROM training_log WHERE run = $run AND {wanted}"
COMPARED = "(starts_with(metric, 'validation') OR metric IN ('loss', 'reward'))"  # in a comparison; a run shows all
PLACES = """
SELECT s.stage, s.label, s.key, c.method, c.x_name, c.x, min(s.position) AS position
FROM stages s LEFT JOIN comparison_cells c ON c.run = s.run AND c.cell = s.cell
WHERE s.run = $run GROUP BY ALL ORDER BY position
"""


@dataclass(frozen=True)
class Line:
    """Methods of a comparison that were trained by the same artifacts, and the keys of these, one a seed."""

    methods: tuple[str, ...]
    keys: frozenset[str]


def training(results: Results) -> Section | None:
    """Curves of every stage that trained, in the order of the run."""
    wanted = COMPARED if results.cells else "true"
    number = results.ask("training_log", COUNT.format(wanted=wanted))
    fewest, most = CURVE_POINTS
    parts = min(most, max(fewest, MOST_POINTS // max(1, number[0]["n"] if number else 1)))
    rows = results.ask("training_log", CURVES.format(parts=parts, wanted=wanted))
    if not rows:
        return None
    groups: dict[tuple[str, str], list[Row]] = {}
    places = results.ask("stages", PLACES)
    for place in places:
        groups.setdefault((place["stage"], place["label"]), [])
    for row in rows:
        groups.setdefault((row["stage"], row["label"]), []).append(row)
    trained = [(stage, label, of_stage) for (stage, label), of_stage in groups.items() if of_stage]
    shown = [_stage(results, places, *each) for each in trained[:MOST_STAGES]]
    left = len(trained) - len(shown)
    if left:
        shown.append(tag("p", {"class": "note"}, f"{left} more stages trained; they are in the relation training_log."))
    return Section("training", "Training", join(shown), _lead(results, max(row["merged"] for row in rows)))


def _lead(results: Results, merged: int) -> str:
    drawn = f"Each point is the mean of up to {merged} logged values." if merged > 1 else "Every logged value is drawn."
    if not results.cells:
        return drawn
    return (
        "Losses, rewards and all that was validated: means over seeds, with bands from the lowest seed to the highest. "
        f"{drawn} All else that was logged is in the relation training_log."
    )


def _stage(results: Results, places: Sequence[Row], stage: str, label: str, rows: Sequence[Row]) -> Html:
    name = f"{stage}[{label}]" if label else stage
    names = sorted(
        dict.fromkeys(row["metric"] for row in rows),
        key=lambda each: (not each.startswith("validation"), each != "loss"),
    )
    constant = {each: {row["value"] for row in rows if row["metric"] == each} for each in names}
    still = [each for each in names if len(constant[each]) == 1]
    said = ", ".join(f"{each.replace('_', ' ')} {constant[each].pop():.6g}" for each in still)
    note = tag("p", {"class": "note"}, f"The same throughout: {said}.") if said else None
    here = [place for place in places if (place["stage"], place["label"]) == (stage, label)]
    moving = [each for each in names if each not in still]
    panels = [panel for each in moving for panel in _panels(results, here, [r for r in rows if r["metric"] == each])]
    if not panels:
        return join([tag("h3", name), note])
    first, rest = panels[:MOST_PANELS], panels[MOST_PANELS:]
    drawn: list[Html | None] = [panels_figure("Logged values against the optimizer's step", first, note)]
    drawn.append(folded(f"{len(rest)} more", panels_figure("More of the logged values", rest)) if rest else None)
    return folded(name, drawn, kind="stage") if results.cells else join([tag("h3", name), drawn])


def _panels(results: Results, places: Sequence[Row], rows: Sequence[Row]) -> list[Panel]:
    """Of one logged value: a panel for each value of the setting that was varied, where it made a difference."""
    label, reach = metric(rows[0]["metric"]).label, [row["value"] for row in rows]
    by_x: dict[float | None, list[Line]] = {}
    for at in dict.fromkeys(place["x"] for place in places):
        by_x[at] = _lines_at([place for place in places if place["x"] == at])
    if len({tuple(lines) for lines in by_x.values()}) == 1:
        return [Panel(label, "step", label, _series(results, next(iter(by_x.values())), rows))]
    setting = next(place["x_name"] for place in places if place["x_name"] is not None)
    ends = (min(reach), max(reach))
    return [
        Panel(f"{label}, {setting} {at:g}" if at is not None else label, "step", label, series, holds=ends)
        for at, lines in by_x.items()
        if (series := _series(results, lines, rows))
    ]


def _lines_at(places: Sequence[Row]) -> list[Line]:
    """Methods with the same artifacts are one line."""
    keys: dict[str, set[str]] = {}
    for place in places:
        keys.setdefault(place["method"] or "", set()).add(place["key"])
    sharing: dict[frozenset[str], list[str]] = {}
    for method, own in keys.items():
        sharing.setdefault(frozenset(own), []).append(method)
    return [Line(tuple(methods), own) for own, methods in sharing.items()]


def _series(results: Results, lines: Sequence[Line], rows: Sequence[Row]) -> list[Series]:
    found = []
    for line in lines:
        name = "" if len(lines) == 1 else ", ".join(map(system, line.methods))
        style = 1 if len(lines) == 1 else results.styles.get(line.methods[0], 1)
        found.append(Series(name, style, _over_seeds([row for row in rows if row["key"] in line.keys])))
    return [series for series in found if series.points]


def _over_seeds(rows: Sequence[Row]) -> list[Point]:
    """Means of what the seeds logged at the same time, with the lowest and the highest of several."""
    if len({row["key"] for row in rows}) < 2:
        return points(rows, "step")
    parts: dict[int, list[Row]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    return [_mean(parts[part]) for part in sorted(parts)]


def _mean(rows: Iterable[Row]) -> Point:
    steps, values = zip(*((row["step"], row["value"]) for row in rows), strict=True)
    return Point(sum(steps) / len(steps), sum(values) / len(values), min(values), max(values))
