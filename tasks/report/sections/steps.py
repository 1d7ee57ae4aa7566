"""Lines over the optimizer's steps: of a run, or of a comparison's methods over their seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.report.charts import Panel, Point, Series
from tasks.report.figures import points
from tasks.report.names import system
from tasks.report.results import Results, Row

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


def step_panels(results: Results, places: Sequence[Row], rows: Sequence[Row], label: str) -> list[Panel]:
    """Of one logged value: a panel for each value of the setting that was varied, where it made a difference."""
    reach = [row["value"] for row in rows]
    by_x: dict[float | None, list[Line]] = {}
    for at in dict.fromkeys(place["x"] for place in places):
        by_x[at] = lines_of([place for place in places if place["x"] == at])
    if len({tuple(lines) for lines in by_x.values()}) == 1:
        return [Panel(label, "step", label, _series(results, next(iter(by_x.values())), rows))]
    setting = next(place["x_name"] for place in places if place["x_name"] is not None)
    ends = (min(reach), max(reach))
    return [
        Panel(f"{label}, {setting} {at:g}" if at is not None else label, "step", label, series, holds=ends)
        for at, lines in by_x.items()
        if (series := _series(results, lines, rows))
    ]


def lines_of(places: Sequence[Row]) -> list[Line]:
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
