"""Training curves: every logged value of a run, and of a comparison what tells its methods apart, over their seeds."""

from collections.abc import Sequence

from tasks.report.figures import folded, panels_figure
from tasks.report.html import Html, join, tag
from tasks.report.names import metric
from tasks.report.results import Results, Row
from tasks.report.section import Section
from tasks.report.sections.steps import PLACES, step_panels
from tasks.report.sections.watch import TEXT, parted, watch_comparison, watch_run

MOST_POINTS = 8_000  # of all curves of a page
CURVE_POINTS = (16, 120)  # of one curve, at least and at most; longer ones are means of as many equal parts
MOST_STAGES = 16  # that are drawn
MOST_PANELS = 12

CURVES = """
WITH spread AS (
    SELECT stage, label, key, metric, step, value,
           ntile({parts}) OVER (PARTITION BY stage, label, key, metric ORDER BY step) AS part
    FROM training_log WHERE run = $run AND isfinite(value) AND NOT starts_with(metric, '{text}') AND {wanted}
)
SELECT stage, label, key, metric, part, max(step) AS step, avg(value) AS value, count(*) AS merged
FROM spread GROUP BY stage, label, key, metric, part ORDER BY stage, label, key, metric, part
"""
COUNT = "SELECT count(DISTINCT (label, key, metric)) AS n FROM training_log WHERE run = $run AND {wanted}"
COMPARED = "(starts_with(metric, 'validation') OR metric IN ('loss', 'reward'))"  # in a comparison; a run shows all


def training(results: Results) -> Section | None:
    """Curves of every stage that trained, in the order of the run."""
    wanted = COMPARED if results.cells else "true"
    number = results.ask("training_log", COUNT.format(wanted=wanted))
    fewest, most = CURVE_POINTS
    parts = min(most, max(fewest, MOST_POINTS // max(1, number[0]["n"] if number else 1)))
    rows = results.ask("training_log", CURVES.format(parts=parts, text=TEXT, wanted=wanted))
    if not rows:
        return None
    lead, places = _lead(results, max(row["merged"] for row in rows)), results.ask("stages", PLACES)
    watched = None
    if results.cells:  # all methods over one another, whatever stage trained them
        mine, rows = parted(rows)
        watched = watch_comparison(results, places, mine)
    groups: dict[tuple[str, str], list[Row]] = {}
    for place in places:
        groups.setdefault((place["stage"], place["label"]), [])
    for row in rows:
        groups.setdefault((row["stage"], row["label"]), []).append(row)
    trained = [(stage, label, of_stage) for (stage, label), of_stage in groups.items() if of_stage]
    shown = [_stage(results, places, *each) for each in trained[:MOST_STAGES]]
    left = len(trained) - len(shown)
    if left:
        shown.append(tag("p", {"class": "note"}, f"{left} more stages trained; they are in the relation training_log."))
    return Section("training", "Training", join([watched, *shown]), lead)


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
    mine, rows = parted(rows)
    watched = None if results.cells else watch_run(results, mine)
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
    panels = [
        panel
        for each in moving
        for panel in step_panels(results, here, [row for row in rows if row["metric"] == each], metric(each).label)
    ]
    if not panels:
        return join([tag("h3", name), watched, note])
    first, rest = panels[:MOST_PANELS], panels[MOST_PANELS:]
    drawn: list[Html | None] = [watched, panels_figure("Logged values against the optimizer's step", first, note)]
    drawn.append(folded(f"{len(rest)} more", panels_figure("More of the logged values", rest)) if rest else None)
    return folded(name, drawn, kind="stage") if results.cells else join([tag("h3", name), drawn])
