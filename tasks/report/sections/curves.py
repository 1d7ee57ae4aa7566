"""Systems side by side: each metric against a setting or method by method, quality against variety, error by length."""

from collections.abc import Sequence
from statistics import fmean

from tasks.formatting import interval, short
from tasks.report.charts import Level, Panel, Point, Series, dots, plot, scatter
from tasks.report.figures import figure, folded, panels_figure, points, table
from tasks.report.names import metric, swept, system
from tasks.report.results import Results, Row
from tasks.report.section import Section
from tasks.report.sections.in_short import SAID_ELSEWHERE, VALUES
from tasks.report.sections.measures import DIRECTIONS

# The students' curves by the names that a comparison gives them. What its cells share belongs to none of them: such a
# student has the name of its system.
EXCESS_ERROR = """
SELECT coalesce(c.method, e.method) AS method, c.x_name, c.x, e.key AS student, e.length, e.value, e.low, e.high
FROM excess_error e
LEFT JOIN comparison_cells c ON c.run = e.run AND c.cell = e.cell AND c.system = e.method
WHERE e.run = $run AND e.value IS NOT NULL
ORDER BY student, e.length
"""


def against_setting(results: Results) -> Section | None:
    """Figure 3 of the DaD-DAgger paper: each metric against the grid's setting, references as lines across."""
    rows = results.ask("comparison", VALUES)
    gridded = [row for row in rows if row["x"] is not None]
    if not gridded:
        return None
    x_name = str(gridded[0]["x_name"])
    style = results.styles
    panels = []
    for name in dict.fromkeys(row["metric"] for row in gridded if row["metric"] not in SAID_ELSEWHERE):
        of_metric = [row for row in rows if row["metric"] == name]
        series = _by([row for row in of_metric if row["x"] is not None], "x", style)
        levels = [
            Level(system(row["method"]), style[row["method"]], row["value"], row["low"], row["high"])
            for row in of_metric
            if row["x"] is None
        ]
        unit = next((row["unit"] for row in of_metric if row["unit"]), "")
        panels.append(Panel(_title(name, unit), x_name, metric(name).label, series, levels))
    lead = "A line per method; bands are 95 % intervals. Systems that the setting says nothing about are lines across."
    return Section(
        f"against-{_slug(x_name)}", f"Against {x_name}", panels_figure(f"Every metric against {x_name}", panels), lead
    )


def method_by_method(results: Results) -> Section | None:
    """Where no setting was varied: every metric of every method, with its interval on a line."""
    rows = results.ask("comparison", VALUES)
    if not rows or any(row["x"] is not None for row in rows):
        return None
    style, drawn = results.styles, []
    for name in dict.fromkeys(row["metric"] for row in rows if row["metric"] not in SAID_ELSEWHERE):
        of_metric = [row for row in rows if row["metric"] == name]
        unit = next((row["unit"] for row in of_metric if row["unit"]), "")
        levels = [
            Level(system(row["method"]), style[row["method"]], row["value"], row["low"], row["high"])
            for row in of_metric
        ]
        title = ", ".join(part for part in (_title(name, unit), DIRECTIONS[metric(name).better]) if part)
        drawn.append(dots(title, levels))
    caption = "Means over the seeds with their 95 % intervals, which cover other inputs and other seeds."
    return Section("methods", "Method by method", figure(caption, drawn, None))


def quality_against_variety(results: Results) -> Section | None:
    """Dist-2 against BLEU-2: a student that plays safe is low on one of them."""
    relation = "comparison" if results.compares else "metrics"
    rows = results.ask(
        relation, f"FROM {relation} WHERE run = $run AND metric IN ('bleu_2', 'distinct_2') AND value IS NOT NULL"
    )
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        where = swept(row) or row.get("cell") or ""
        cells.setdefault((row["method"], where), {})[row["metric"]] = row
    both = {key: each for key, each in cells.items() if len(each) == 2}
    if len(both) < 2:
        return None
    several = len({where for _, where in both}) > 1
    style = results.styles
    series, wide, told = [], {}, []
    for (method, where), each in both.items():
        name = system(method, where if several else "")
        across, up = each["bleu_2"], each["distinct_2"]
        series.append(Series(name, style[method], [Point(across["value"], up["value"], up["low"], up["high"])]))
        wide[name] = (across["low"], across["high"])
        told.append([name, *(f"{short(row['value'])} {interval(row['low'], row['high'], 2)}" for row in (across, up))])
    panel = Panel("Dist-2 against BLEU-2", "BLEU-2 (points)", "Dist-2 (%)", series)
    drawn = plot("Dist-2 (%)", scatter(panel, wide))
    body = figure(
        "Up and to the right is better: closer to the references, and more varied. Crosses are 95 % intervals.",
        [drawn],
        None,
        folded("The numbers", table("All points", ["system", "BLEU-2", "Dist-2"], told)),
    )
    return Section("variety", "Quality against variety", body)


def excess_error(results: Results) -> Section | None:
    """ExError by length: how much error comes from writing by oneself."""
    rows = results.ask("excess_error", EXCESS_ERROR)
    if not rows:
        return None
    lines: dict[str, dict[int, list[Row]]] = {}
    method = {}
    for row in rows:
        name = system(row["method"], swept(row))
        method[name] = row["method"]
        lines.setdefault(name, {}).setdefault(row["length"], []).append(row)
    order = list(results.styles)
    series = [
        Series(
            name, results.styles[method[name]], [_mean(length, each) for length, each in sorted(lines[name].items())]
        )
        for name in sorted(lines, key=lambda name: order.index(method[name]))
    ]
    most = max(len(students) for line in lines.values() for students in line.values())
    band = "its 95 % band" if most == 1 else f"mean of up to {most} seeds, from the lowest to the highest of them"
    lead = (
        "How much larger the student's error gets on its own text than on the teacher's, as the text grows. "
        "0 would mean no exposure bias; a line that rises says that errors accumulate."
    )
    panel = Panel("ExError (%) by length", "tokens written", "ExError", series)
    return Section("exerror", "Excess error by length", panels_figure(f"Excess error, {band}", [panel]), lead)


def _mean(length: int, students: Sequence[Row]) -> Point:
    """One student's point with its interval; of several their mean, from the lowest to the highest."""
    if len(students) == 1:
        return Point(length, students[0]["value"], students[0]["low"], students[0]["high"])
    values = [row["value"] for row in students]
    return Point(length, fmean(values), min(values), max(values))


def _by(rows: Sequence[Row], x: str, style: dict[str, int]) -> list[Series]:
    """A line for each method."""
    keyed: dict[str, list[Row]] = {}
    for row in rows:
        keyed.setdefault(row["method"], []).append(row)
    found = [Series(system(name), style[name], points(of_line, x)) for name, of_line in keyed.items()]
    return [series for series in found if series.points]


def _title(name: str, unit: str) -> str:
    return f"{metric(name).label} ({unit})" if unit else metric(name).label


def _slug(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower()) or "setting"
