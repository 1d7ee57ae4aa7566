"""The top of the page: what must be read first, and what was run on what."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.formatting import duration, short, size
from tasks.report.figures import folded, table
from tasks.report.html import Html, join, quoted, shortened, tag
from tasks.report.names import system
from tasks.report.results import Results, Row
from tasks.report.section import Section

STAGES = "FROM stages WHERE run = $run ORDER BY position"
LONGEST = 500  # characters of a setting's value, or of a warning
LONGEST_REASON = 160  # why a stage was built
LONGEST_COMMAND = 20_000
MOST_WARNINGS = 50
NUMBER = re.compile(r"\d[\d.,]*")
FEW_STAGES = 14


def warnings(results: Results) -> Html | None:
    """What went wrong, and what the stages warned of: each once, and once for all that differ in their numbers only."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in results.ask("stages", STAGES):
        for text in json.loads(row["stats"] or "{}").get("warnings", []):
            found.setdefault(NUMBER.sub("#", str(text)), {}).setdefault(str(text), []).append(row)
    record, parts = results.record, []
    if record["state"] != "completed":
        said = f": {record['error']}" if record["error"] else ""
        parts.append(tag("li", tag("strong", f"This run is {record['state']}"), said, ". What follows is incomplete."))
    missing = "FROM left_out SEMI JOIN (FROM stages WHERE run = $run) s USING (stage, key)"
    parts += [
        tag("li", tag("strong", "Not all of it can be read"), f": {row['what']}")
        for row in results.ask("left_out", missing)
    ]
    if results.deleted:
        parts.append(tag("li", tag("strong", "Not all of it is there"), f": deleted since: {results.deleted}"))
    parts += [_warning(results, alike) for alike in list(found.values())[:MOST_WARNINGS]]
    if len(found) > MOST_WARNINGS:
        parts.append(tag("li", f"{len(found) - MOST_WARNINGS} more, in the stats of the relation stages"))
    if not parts:
        return None
    heading = tag("h2", {"id": "warnings-heading"}, "Read this first")
    return tag(
        "section",
        {"id": "warnings", "class": "warnings", "aria-labelledby": "warnings-heading"},
        heading,
        tag("ul", parts),
    )


def _warning(results: Results, alike: Mapping[str, list[Row]]) -> Html:
    """The first of warnings that differ in their numbers only, how many there are, and of which methods."""
    rows = [row for of_text in alike.values() for row in of_text]
    cells = {row["cell"] for row in rows if row["cell"]}
    names = list(dict.fromkeys(_name(row) for row in rows))
    everyone = list(dict.fromkeys(row["method"] for row in results.cells))
    warned = {row["method"] for row in results.cells if row["cell"] in cells}
    of = f" of {', '.join(system(each) for each in everyone if each in warned)}" if len(warned) < len(everyone) else ""
    where = f"{', '.join(names)} in {len(cells)} runs{of}" if len(cells) > 1 else ", ".join([*names, *cells])
    text, *others = alike
    more = f" ({len(others)} more like this, with other numbers)" if others else ""
    return tag("li", tag("strong", where), ": ", quoted(_cut(text)), more)


def what_was_run(results: Results) -> Section:
    """Facts, the command that repeats it, stages, and all parameters."""
    record, rows = results.record, results.ask("stages", STAGES)
    parameters = json.loads(record["parameters"])
    stages = _stages_of_cells(rows) if results.cells else _stages(rows)
    return Section(
        "run",
        "What was run",
        join(
            [
                _facts(record, parameters, rows),
                tag("h3", "The command that repeats it"),
                _commands(record, parameters, results.compares),
                tag("h3", "Stages"),
                stages if results.cells or len(rows) <= FEW_STAGES else folded(f"All {len(rows)} stages", stages),
                _parameters(parameters),
            ]
        ),
    )


def _facts(record: Row, parameters: Mapping[str, Any], stages: list[Row]) -> Html:
    outcomes = [row["outcome"] for row in stages]
    counts = ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes))
    began = f"{record['started']:%Y-%m-%d %H:%M} UTC"
    facts = [
        ("Run", record["run"]),
        ("Data set", record["dataset"]),
        ("Method", record["method"]),
        ("Seed", record["seed"]),
        ("Compares", _compared(parameters)),
        ("Teacher", _model(parameters.get("teacher"))),
        ("Student", _model(parameters.get("student"))),
        ("Began", f"{began}, took {duration(record['seconds'])}" if record["seconds"] is not None else began),
        ("Stages", f"{len(stages)}: {counts}" if stages else None),
        ("Machine", _distinct(stages, "machine")),
        ("Versions", _distinct(stages, "versions")),
    ]
    pairs = [
        tag("div", tag("dt", name), tag("dd", quoted(str(text)))) for name, text in facts if text not in (None, "")
    ]
    return tag("dl", {"class": "facts"}, pairs)


def _compared(parameters: Mapping[str, Any]) -> str:
    """`llmr-chitchat: LLMR, JS; method.alpha = 0, 0.5, 1; seeds 0, 1` of a comparison."""
    if "variants" not in parameters:
        return ""
    parts = [f"{parameters['run']}: {', '.join(parameters['variants'])}"]
    if parameters.get("sweep"):
        parts.append(f"{parameters['sweep']} = {', '.join(f'{value:g}' for value in parameters['values'])}")
    return "; ".join([*parts, f"seeds {', '.join(map(str, parameters['seeds']))}"])


def _model(settings: Mapping[str, Any] | None) -> str:
    """`google-t5/t5-base`, or the shape that is trained here."""
    settings = settings or {}
    if settings.get("name"):
        revision = settings.get("revision")
        return f"{settings['name']} ({str(revision)[:12]})" if revision else str(settings["name"])
    if settings.get("endpoint"):
        return f"{settings['endpoint']['model']} (behind a server)"
    shape = settings.get("shape") or {}
    return "trained here: " + ", ".join(f"{name} {value}" for name, value in shape.items()) if shape else ""


def _distinct(stages: list[Row], column: str) -> str:
    """Where artifacts were made in different places, each place once."""
    records = dict.fromkeys(row[column] for row in stages if row.get(column))
    texts = [
        ", ".join(f"{name} {value}" for name, value in json.loads(each).items() if value is not None)
        for each in records
    ]
    return "; or ".join(texts)


def _commands(record: Row, parameters: dict[str, Any], compares: bool) -> Html:
    flow, name = "compare" if compares else "distill", str(record["name"]).removeprefix("compare/")
    given = {name: value for name, value in parameters.items() if value is not None}
    long = f"prefect deployment run {flow}/{name} --params {shlex.quote(json.dumps(given))}"
    here = "In this store: with the recorded parameters, and what is cached is not computed again."
    elsewhere = folded("Anywhere else, while distill up is running", _command(long, "All parameters spelt out."))
    return join(
        [_command(f"distill resume {record['run']}", here), elsewhere if len(long) <= LONGEST_COMMAND else None]
    )


def _command(text: str, what: str) -> Html:
    return tag(
        "div",
        {"class": "command"},
        tag("pre", {"tabindex": "0", "aria-label": "Command"}, tag("code", text)),
        tag("p", {"class": "note"}, what),
    )


def _stages_of_cells(rows: list[Row]) -> Html:
    """Of each run of a comparison the stages that no run before it had, folded; what it shares is only counted."""
    own = [row for row in rows if not row["cell"]]
    seen: set[str] = {row["key"] for row in own}
    parts = [_stages(own)]
    for cell in dict.fromkeys(row["cell"] for row in rows if row["cell"]):
        of_cell = [row for row in rows if row["cell"] == cell]
        first = {row["key"]: row for row in reversed(of_cell)}  # the first cell may have been built ahead of its turn
        new = [row for key, row in first.items() if key not in seen][::-1]
        seen |= first.keys()
        cost = duration(sum(row["build_seconds"] or 0 for row in new))
        shared = f", {len(first) - len(new)} shared with runs above" if len(new) < len(first) else ""
        parts.append(
            folded(f"{cell}: {len(new)} stages of its own, {cost} to build{shared}", _stages(new) if new else "")
        )
    return join(parts)


def _stages(rows: list[Row]) -> Html:
    headers = ["stage", "outcome", "time", "to build", "tokens/s", "size", "why it was built", "key"]
    cells = [
        [
            _name(row),
            row["outcome"],
            duration(row["seconds"]),
            duration(row["build_seconds"]),
            short(row["tokens_per_second"]),
            size(row["bytes"]),
            quoted(_cut(row["why"] or "–", LONGEST_REASON)),
            tag("code", row["key"][:12]),
        ]
        for row in rows
    ]
    caption = "A hit was there already and cost only the time shown; “to build” is what it took when it was made."
    return table(caption, headers, cells, "stages")


def _name(row: Row) -> str:
    return f"{row['stage']}[{row['label']}]" if row["label"] else str(row["stage"])


def _parameters(parameters: Mapping[str, Any]) -> Html | None:
    rows = [[tag("code", name), quoted(_cut(value))] for name, value in _flat(parameters)]
    return (
        folded(
            f"All {len(rows)} parameters",
            table("As the run recorded them; unset ones are left out", ["parameter", "value"], rows),
        )
        if rows
        else None
    )


def _cut(value: Any, longest: int = LONGEST) -> str:
    text, left = shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), longest)
    return f"{text}… ({left} more characters)" if left else text


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in value.items():
        if isinstance(each, Mapping):
            yield from _flat(each, f"{prefix}{name}.")
        elif each is not None:
            yield f"{prefix}{name}", each
