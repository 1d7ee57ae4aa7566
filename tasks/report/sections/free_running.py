"""Running freely: how well a system predicts the true text after tokens of its own, by step and by round."""

from collections.abc import Sequence

from tasks.report.charts import Panel, Point, Series
from tasks.report.figures import panels_figure
from tasks.report.html import join
from tasks.report.names import metric, swept, system
from tasks.report.results import Results, Row
from tasks.report.section import Section

ONE = "FROM free_running WHERE run = $run AND value IS NOT NULL"
# of each cell its own method and what it is measured against, whoever else has the artifact too
OVER_SEEDS = """
WITH placed AS (
    SELECT c.x_name, c.x, c.seed, f."round", f.step, f.value, {called} AS method
    FROM comparison_cells c JOIN stages s ON s.run = c.run AND s.cell = c.cell
    JOIN free_running f ON f.run = c.run AND f.key = s.key
    WHERE c.run = $run AND f.value IS NOT NULL AND {wanted}
)
SELECT x_name, x, method, {by}, avg(value) AS value, min(value) AS low, max(value) AS high
FROM (SELECT x_name, x, method, seed, {by}, avg(value) AS value FROM placed GROUP BY ALL)
GROUP BY ALL ORDER BY x, method, {by}
"""
STEPS = OVER_SEEDS.format(
    by="step",
    called="if(f.method = c.system, c.method, f.method)",
    wanted="""(f.method = c.system OR "round" IS NULL OR "round" = 0)""",
)
ROUNDS = OVER_SEEDS.format(by='"round"', called="c.method", wanted='f."round" IS NOT NULL')
CROSS_ENTROPY = "Free-running cross-entropy (nats)"
WRITTEN = "tokens written"


def free_running(results: Results) -> Section | None:
    """Cross-entropy by step, and what the rounds changed."""
    figures = _of_comparison(results) if results.cells else _of_run(results)
    if not figures:
        return None
    lead = "The cross-entropy of the true next token after tokens that the system has written itself."
    return Section("free-running", "Running freely", join(figures), lead)


def _of_run(results: Results) -> list[object]:
    rows, style = results.ask("free_running", ONE), results.styles
    if not rows:
        return []
    left = [row | {"value": row["left_text"], "low": None, "high": None} for row in rows]
    by_step = [
        Panel(CROSS_ENTROPY, WRITTEN, metric("free_running_ce").label, _lines(rows, "step", style)),
        Panel("Another token than the text's (%)", WRITTEN, metric("left_text").label, _lines(left, "step", style)),
    ]
    return [panels_figure("By step. Bands are 95 % intervals.", by_step)]


def _of_comparison(results: Results) -> list[object]:
    steps, rounds = results.ask("free_running", STEPS), results.ask("free_running", ROUNDS)
    figures: list[object] = []
    if steps:
        caption = "By step: means over seeds; bands are from the lowest seed to the highest."
        figures.append(panels_figure(caption, _side_by_side(steps, "step", WRITTEN, results.styles)))
    if len({row["round"] for row in rounds}) > 2:
        caption = "By round of training, the mean over all steps; round 0 is the untrained student."
        figures.append(panels_figure(caption, _side_by_side(rounds, "round", "round", results.styles)))
    return figures


def _side_by_side(rows: Sequence[Row], x: str, x_label: str, style: dict[str, int]) -> list[Panel]:
    """A panel for each value of the setting that was varied, all with the same axis."""
    label, values = metric("free_running_ce").label, [row["value"] for row in rows]
    ends, panels = (min(values), max(values)), []
    for at in dict.fromkeys(row["x"] for row in rows):
        here = [row for row in rows if row["x"] == at]
        title = swept(here[0]) or CROSS_ENTROPY
        panels.append(Panel(title, x_label, label, _lines(here, x, style), holds=ends))
    return panels


def _lines(rows: Sequence[Row], x: str, style: dict[str, int]) -> list[Series]:
    names = [name for name in style if any(row["method"] == name for row in rows)]
    return [
        Series(
            system(name),
            style[name],
            [Point(row[x], row["value"], row["low"], row["high"]) for row in rows if row["method"] == name],
        )
        for name in names
    ]
