"""What to watch of a student that learns from its own text: what each validation saw of it, as small multiples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tasks.report.charts import Level, Panel, Series
from tasks.report.figures import folded, panels_figure, points
from tasks.report.html import Html, join
from tasks.report.names import TEACHER, UNTRAINED
from tasks.report.results import Results, Row
from tasks.report.sections.steps import lines_of, step_panels

PREFIX, TEXT = "validation_", "validation_text_"  # the latter: the teacher on the data set's own outputs
MOST_PANELS = 24  # of a comparison, which may have several of each; more are folded
STARTS = """
SELECT DISTINCT key, metric, value FROM training_log
WHERE run = $run AND step = 0 AND starts_with(metric, 'validation_') AND isfinite(value)
"""
STYLES = {"greedy": 1, "sampled": 2, "reverse KL": 3, "forward KL": 4}


@dataclass(frozen=True)
class Watched:
    """A panel: what it shows and what a collapse looks like there, and the logged values with the lines' names."""

    title: str
    unit: str
    meaning: str
    lines: Mapping[str, str]
    holds: tuple[float, ...] = ()  # what the y axis reaches at least, so that next to nothing does not look like much


RARE = (0.0, 0.2)


def _both(name: str) -> dict[str, str]:
    return {name: "greedy", f"sampled_{name}": "sampled"}


WATCHED = (
    Watched(
        "Reward",
        "nats per token",
        "The teacher's reward of the outputs; a rise says nothing by itself while another panel here turns.",
        _both("reward"),
    ),
    Watched(
        "Overlap",
        "share of tokens",
        "Of the 16 likeliest next tokens, those that teacher and student share on the student's text; it rises in good "
        "training and falls in a collapse.",
        {"overlap": "sampled"},
    ),
    Watched(
        "Teacher's log-probability",
        "nats per token",
        "How likely the teacher finds the student's words: far below the references it would never write them; far "
        "above them, the student has collapsed into what is safe.",
        {"log_prob": "sampled"},
    ),
    Watched(
        "Teacher's entropy",
        "nats per token",
        "How unsure the teacher is after the student's words: well above the references it is lost there and can teach "
        "little; close to 0, the student has collapsed into stock phrases.",
        {"teacher_entropy": "sampled"},
    ),
    Watched(
        "Reverse and forward KL",
        "nats per token",
        "How far the student is from the teacher on its own text; in a collapse the reverse KL falls while the forward "
        "KL rises: what is left is the teacher's, and much of the teacher's is gone.",
        {"reverse_kl": "reverse KL", "forward_kl": "forward KL"},
    ),
    Watched(
        "Length",
        "tokens",
        "Tokens per output; a collapse shortens them to a stock reply, or lets them run to the limit.",
        _both("length"),
    ),
    Watched(
        "Cut off",
        "share of outputs",
        "Outputs that hit the length limit; in a collapse the student no longer ends what it writes.",
        _both("truncated"),
        RARE,
    ),
    Watched(
        "Equal outputs",
        "share of outputs",
        "Outputs that another one equals; in a collapse it climbs: the same reply to every input.",
        _both("equal"),
        RARE,
    ),
    Watched(
        "Distinct bigrams",
        "share of bigrams",
        "How varied the outputs are together; in a collapse it falls.",
        _both("distinct_2"),
    ),
    Watched(
        "Repetition",
        "share of 4-grams",
        "4-grams that stood in the same output before; in a collapse it climbs: the student goes round in circles.",
        _both("repetition"),
        RARE,
    ),
)
NAMES = {PREFIX + name for watched in WATCHED for name in watched.lines}
CAPTION = (
    "What to watch: the student's own text at each validation, greedy or sampled, with the start (before any update) "
    "and the references (the teacher on the data set's own outputs) as lines across"
)


def parted(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """What is drawn here, and the rest: older runs logged less of it, and where it was only once there is no line."""
    steps: dict[str, set[int]] = {}
    for row in rows:
        steps.setdefault(row["metric"], set()).add(row["step"])
    drawn = {name for name, of_name in steps.items() if name in NAMES and len(of_name) > 1}
    return [row for row in rows if row["metric"] in drawn], [row for row in rows if row["metric"] not in drawn]


def watch_run(results: Results, rows: Sequence[Row]) -> Html | None:
    """The panels of one stage of a run; None where nothing of it was logged."""
    panels, starts = [], _starts(results, {row["key"] for row in rows})
    for watched in WATCHED:
        series, levels = [], _text(watched, starts)
        for name, line in watched.lines.items():
            of_name = [row for row in rows if row["metric"] == PREFIX + name]
            if not of_name:
                continue
            series.append(Series(line, STYLES[line], points(of_name, "step")))
            for value in starts.get(PREFIX + name, {}).values():
                called = "start" if len(watched.lines) == 1 else f"start, {line}"
                levels.append(Level(called, UNTRAINED, value, group="start"))
        if series:
            drawn = Panel(watched.title, "step", watched.unit, series, levels, watched.holds, watched.meaning)
            panels.append(drawn)
    return panels_figure(CAPTION, panels) if panels else None


def watch_comparison(results: Results, places: Sequence[Row], rows: Sequence[Row]) -> Html | None:
    """The panels of all methods over one another, whatever stage trained them, a panel for each logged value."""
    keys = {row["key"] for row in rows}
    here = [place for place in places if place["key"] in keys]
    starts, panels = _starts(results, keys), dict[bool, list[Panel]]({False: [], True: []})
    for watched in WATCHED:
        for name, line in watched.lines.items():
            of_name = [row for row in rows if row["metric"] == PREFIX + name]
            if not of_name:
                continue
            title = watched.title if len(watched.lines) == 1 else f"{watched.title}, {line}"
            title = line[0].upper() + line[1:] if line.endswith("KL") else title
            levels = [*_text(watched, starts), *_shared_start(here, starts.get(PREFIX + name, {}))]
            panels[name.startswith("sampled_")] += [
                replace(
                    panel,
                    y_label=watched.unit,
                    levels=levels,
                    holds=(*panel.holds, *watched.holds),
                    note="" if number else watched.meaning,
                )
                for number, panel in enumerate(step_panels(results, here, of_name, title))
            ]
    shown = panels[False] + panels[True]
    if not shown:
        return None
    first = (panels[False] or shown)[:MOST_PANELS]
    rest = shown[len(first) :]
    more = folded(f"{len(rest)} more, of sampled outputs", panels_figure("More to watch", rest)) if rest else None
    return join([panels_figure(CAPTION, first), more])


def _starts(results: Results, keys: set[str]) -> dict[str, dict[str, float]]:
    """What each training logged before its first update: by name, then by the key of what was trained."""
    found: dict[str, dict[str, float]] = {}
    for row in results.ask("training_log", STARTS):
        if row["key"] in keys:
            found.setdefault(row["metric"], {})[row["key"]] = row["value"]
    return found


def _text(watched: Watched, starts: Mapping[str, Mapping[str, float]]) -> list[Level]:
    values = [value for name in watched.lines for value in starts.get(TEXT + name, {}).values()]
    return [Level("references", TEACHER, fmean(values))] if values else []


def _shared_start(places: Sequence[Row], starts: Mapping[str, float]) -> list[Level]:
    """The start, where all methods have the same: else their lines say where they begin."""
    means = [
        fmean(starts[key] for key in line.keys if key in starts)
        for line in lines_of(places)
        if not starts.keys().isdisjoint(line.keys)
    ]
    same = bool(means) and all(math.isclose(mean, means[0], rel_tol=1e-6, abs_tol=1e-9) for mean in means)
    return [Level("start", UNTRAINED, means[0])] if same else []
