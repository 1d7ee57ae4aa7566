"""What went along a line: training, error by length, free running by step and by round, a metric against a setting."""

from collections.abc import Sequence

from tasks.report.charts import Level, Panel, Point, Series, scatter
from tasks.report.figures import figure, folded, legend, numbers, points, table, titled
from tasks.report.html import Html, join, tag
from tasks.report.names import TEACHER, interval, metric, short, styles, system
from tasks.report.results import Results, Row
from tasks.report.sections import Section

MOST_POINTS = 8_000  # of all curves of a page
CURVE_POINTS = (16, 120)  # of one curve, at least and at most; longer ones are means of as many equal parts
MOST_GROUPS = 16  # of training stages that are drawn
MOST_LINES = 8  # that can be told apart in one panel
MOST_PANELS = 12

TRAINING = """
WITH spread AS (
    SELECT stage, label, cell, metric, step, value,
           ntile({parts}) OVER (PARTITION BY stage, label, cell, metric ORDER BY step) AS part
    FROM training_log WHERE run = $run AND isfinite(value)
)
SELECT stage, label, cell, metric, max(step) AS step, avg(value) AS value, count(*) AS merged
FROM spread GROUP BY stage, label, cell, metric, part ORDER BY stage, label, cell, metric, step
"""
CURVES = "SELECT count(DISTINCT (stage, label, cell, metric)) AS n FROM training_log WHERE run = $run"
FIGURE_3 = "FROM comparison WHERE run = $run AND value IS NOT NULL"


def against_setting(results: Results) -> Section | None:
    """Figure 3 of the DaD-DAgger paper: each metric against the grid's setting, references as lines across."""
    rows = results.ask("comparison", FIGURE_3)
    gridded = [row for row in rows if row["x"] is not None]
    if not gridded:
        return None
    x_name = str(gridded[0]["x_name"])
    style = results.styles
    panels = []
    for name in dict.fromkeys(row["metric"] for row in gridded):
        of_metric = [row for row in rows if row["metric"] == name]
        series = _by(of_metric, "method", "x", style)
        levels = [
            Level(system(row["method"]), style[row["method"]], row["value"], row["low"], row["high"])
            for row in of_metric
            if row["x"] is None
        ]
        unit = next((row["unit"] for row in of_metric if row["unit"]), "")
        panels.append(Panel(_title(name, unit), x_name, metric(name).label, series, levels))
    lead = "A line per method; bands are 95 % intervals. Systems that the setting says nothing about are lines across."
    return Section(
        f"against-{_slug(x_name)}", f"Against {x_name}", _figure(f"Every metric against {x_name}", panels), lead
    )


def quality_against_variety(results: Results) -> Section | None:
    """Dist-2 against BLEU-2: a student that plays safe is low on one of them."""
    relation = "comparison" if results.compares else "metrics"
    rows = results.ask(
        relation, f"FROM {relation} WHERE run = $run AND metric IN ('bleu_2', 'distinct_2') AND value IS NOT NULL"
    )
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        where = f"{row['x_name']} {row['x']:g}" if row.get("x") is not None else row.get("cell") or ""
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
    drawn = tag(
        "div",
        {"class": "plot"},
        tag("p", {"class": "plot-title", "aria-hidden": "true"}, "Dist-2 (%)"),
        scatter(panel, wide),
    )
    body = figure(
        "Up and to the right is better: closer to the references, and more varied. Crosses are 95 % intervals.",
        [drawn],
        None,
        folded("The numbers", table("All points", ["system", "BLEU-2", "Dist-2"], told)),
    )
    return Section("variety", "Quality against variety", body)


def excess_error(results: Results) -> Section | None:
    """ExError by length: how much error comes from writing by oneself."""
    rows = results.ask("excess_error", "FROM excess_error WHERE run = $run AND value IS NOT NULL")
    if not rows:
        return None
    panel = Panel("ExError (%) by length", "tokens written", "ExError", _by(rows, "method", "length", results.styles))
    lead = (
        "How much larger the student's error gets on its own text than on the teacher's, as the text grows. "
        "0 would mean no exposure bias; a line that rises says that errors accumulate."
    )
    return Section("exerror", "Excess error by length", _figure("Excess error, with its 95 % band", [panel]), lead)


def free_running(results: Results) -> Section | None:
    """Free-running cross-entropy by step, and what the rounds of aggregation changed."""
    by_step = results.ask("free_running", "FROM free_running WHERE run = $run AND value IS NOT NULL")
    rounds = results.ask("dagger_rounds", "FROM dagger_rounds WHERE run = $run AND value IS NOT NULL")
    parts = []
    if by_step:
        panel = Panel(
            "Free-running cross-entropy (nats)",
            "tokens written",
            "Cross-entropy",
            _by(by_step, "method", "step", results.styles),
        )
        parts.append(
            _figure(
                "By step: the student writes, the teacher judges each next token. Bands are 95 % intervals.", [panel]
            )
        )
    if rounds:
        parts.append(
            _figure("Round by round, and within a round by step where it was measured so.", _round_panels(rounds))
        )
    if not parts:
        return None
    return Section(
        "free-running", "Running freely", join(parts), "What happens when the student goes on from its own words."
    )


def training(results: Results) -> Section | None:
    """Curves of every stage that trained."""
    number = results.ask("training_log", CURVES)
    fewest, most = CURVE_POINTS
    merged_into = min(most, max(fewest, MOST_POINTS // max(1, number[0]["n"] if number else 1)))
    rows = results.ask("training_log", TRAINING.format(parts=merged_into))
    groups: dict[tuple[str, str], list[Row]] = {}
    order = {
        row["stage"]: row["position"]
        for row in results.ask(
            "stages", "SELECT stage, min(position) AS position FROM stages WHERE run = $run GROUP BY stage"
        )
    }
    for row in sorted(rows, key=lambda row: (order.get(row["stage"], 0), row["label"])):
        groups.setdefault((row["stage"], row["label"]), []).append(row)
    if not groups:
        return None
    shown = list(groups.items())[:MOST_GROUPS]
    parts = [_training_group(stage, label, of_group) for (stage, label), of_group in shown]
    left = len(groups) - len(shown)
    if left:
        parts.append(tag("p", {"class": "note"}, f"{left} more stages trained; they are in the relation training_log."))
    merged = max(row["merged"] for row in rows)
    lead = f"Each point is the mean of up to {merged} logged values." if merged > 1 else "Every logged value is drawn."
    return Section("training", "Training", join(parts), lead)


def _training_group(stage: str, label: str, rows: Sequence[Row]) -> Html:
    constants, panels = [], []
    names = sorted(
        dict.fromkeys(row["metric"] for row in rows),
        key=lambda name: (not name.startswith("validation"), name != "loss"),
    )
    for name in names:
        of_metric = [row for row in rows if row["metric"] == name]
        values = {row["value"] for row in of_metric}
        if len(values) == 1:
            constants.append(f"{name.replace('_', ' ')} {of_metric[0]['value']:.6g}")
            continue
        panels.append(Panel(metric(name).label, "step", metric(name).label, _by(of_metric, "cell", "step")))
    still = tag("p", {"class": "note"}, f"The same throughout: {', '.join(constants)}.") if constants else None
    title = tag("h3", f"{stage}[{label}]" if label else stage)
    if not panels:
        return join([title, still])
    first, rest = panels[:MOST_PANELS], panels[MOST_PANELS:]
    drawn = _figure(f"{len(panels)} of the logged values against the optimizer's step", first, still)
    return join(
        [title, drawn, folded(f"{len(rest)} more", _figure("More of the logged values", rest)) if rest else None]
    )


def _round_panels(rows: Sequence[Row]) -> list[Panel]:
    panels = []
    for name in dict.fromkeys(row["metric"] for row in rows):
        of_metric = [row for row in rows if row["metric"] == name]
        label = metric(name).label
        if any(row["step"] is not None for row in of_metric):
            stepped = [
                row | {"at": f"round {row['round']}" + (f" ({row['cell']})" if row["cell"] else "")}
                for row in of_metric
                if row["step"] is not None
            ]
            panels.append(Panel(label, "tokens written", label, _by(stepped, "at", "step")))
        whole = [row for row in of_metric if row["step"] is None]
        if whole:
            panels.append(Panel(label, "round", label, _by(whole, "cell", "round")))
    return panels


def _by(rows: Sequence[Row], column: str, x: str, style: dict[str, int] | None = None) -> list[Series]:
    """A line for each value of a column, and for each cell where there are several.

    Where there are more than one can tell apart, the legend names what they have in common, not each line.
    """
    keyed: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cell = "" if column == "cell" else row.get("cell") or ""
        keyed.setdefault((row[column] or "", cell), []).append(row)
    several, many = len({cell for _, cell in keyed}) > 1, len(keyed) > MOST_LINES
    own = styles(f"{name}{cell}" for name, cell in keyed)
    found = []
    for (name, cell), of_line in keyed.items():
        kind = style[name] if style is not None else TEACHER if many else own[f"{name}{cell}"]
        group = "" if not many else system(name) if style is not None else f"each of {len(keyed)}"
        found.append(Series(system(name, cell if several else ""), kind, points(of_line, x), group))
    return [series for series in found if series.points]


def _figure(caption: str, panels: Sequence[Panel], *below: Html | None) -> Html:
    drawn: list[Series | Level] = []
    for panel in panels:
        drawn += [*panel.series, *panel.levels]
    return figure(caption, [titled(panel) for panel in panels], legend(drawn), *below, numbers(panels))


def _title(name: str, unit: str) -> str:
    return f"{metric(name).label} ({unit})" if unit else metric(name).label


def _slug(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower()) or "setting"
