"""The table of metrics with their intervals, the best of the students marked, the papers' numbers beside them."""

from collections.abc import Sequence
from typing import Any

from tasks.formatting import count, decimals, fixed, interval
from tasks.report.figures import folded, table
from tasks.report.html import Html, join, tag
from tasks.report.names import NEITHER, REFERENCE_SYSTEMS, metric, swept, system
from tasks.report.results import Results, Row
from tasks.report.section import Section

METRICS = "FROM metrics WHERE run = $run"
COMPARED = "FROM comparison WHERE run = $run"
PUBLISHED = (
    "SELECT p.our_method AS method, p.metric, p.value, p.paper, p.place FROM published p JOIN runs r "
    "ON r.dataset = p.our_dataset WHERE r.run = $run"
)
FEW_SYSTEMS = 4  # as columns; more are rows
ARROWS = {1: "↑", -1: "↓", 0: ""}
DIRECTIONS = {1: "higher is better", -1: "lower is better", 0: ""}


def metrics(results: Results) -> Section | None:
    """The table of metrics; of a comparison its methods over the seeds, with the table of each cell folded below."""
    rows = named(results.ask("metrics", METRICS))
    compared = named(results.ask("comparison", COMPARED))
    if not rows and not compared:
        return None
    published = results.ask("published", PUBLISHED)
    parts: list[Html | None] = _grids(compared or rows, published)
    if compared and rows:
        parts.append(folded("Each cell of the comparison by itself", _grids(rows, published)))
    parts += [_undefined(compared or rows), _glossary(compared or rows)]
    lead = "95 % intervals in brackets; ★ marks the best of the trained students, ↑ and ↓ which direction is better."
    return Section("metrics", "Metrics", join(parts), lead)


def named(rows: Sequence[Row]) -> list[Row]:
    """Rows with a `system`, the name that is shown: with the cell or x where there are several of one method."""
    places: dict[str, set[Any]] = {}
    for row in rows:
        places.setdefault(row["method"], set()).add(row.get("cell") or "")
    named = []
    for row in rows:
        cell = (row.get("cell") or "") if len(places[row["method"]]) > 1 else ""
        named.append(row | {"system": system(row["method"], swept(row) or cell)})
    return named


def _grids(rows: list[Row], published: list[Row]) -> list[Html | None]:
    splits = dict.fromkeys(row["split"] for row in rows)
    return [_grid([row for row in rows if row["split"] == split], published) for split in splits]


def _grid(rows: list[Row], published: list[Row]) -> Html:
    """Metrics as rows and systems as columns, or the other way round where there are many systems."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    names = list(dict.fromkeys(row["metric"] for row in rows))
    found = {(row["metric"], row["system"]): row for row in rows}
    papers = {(row["metric"], system(row["method"])): row for row in published}
    of_metric = {name: [found.get((name, each)) for each in systems] for name in names}
    cells = {name: _cells(name, of_metric[name], papers) for name in names}
    heads = [_head(name, of_metric[name]) for name in names]
    caption = _caption(rows, any((name, each) in papers for name in names for each in systems))
    if len(systems) <= FEW_SYSTEMS:
        return table(
            caption,
            ["metric", *systems],
            [[head, *cells[name]] for head, name in zip(heads, names, strict=True)],
            "values",
        )
    by_system = [[each, *(cells[name][i] for name in names)] for i, each in enumerate(systems)]
    return table(caption, ["system", *heads], by_system, "values")


def _caption(rows: list[Row], has_published: bool) -> str:
    counts = sorted({row["n"] for row in rows if row["n"] is not None})
    parts = [f"{rows[0]['split']} split, n = {' or '.join(map(count, counts))}"]
    seeds = sorted({row["seeds"] for row in rows if row.get("seeds")})
    if seeds:
        parts.append(
            f"means of {' or '.join(map(str, seeds))} seeds, below them the lowest and the highest where they differ"
        )
    if has_published:
        parts.append("“paper” is the published number")
    return "; ".join(parts)


def _head(name: str, rows: Sequence[Row | None]) -> Html:
    known = metric(name)
    unit = next((row["unit"] for row in rows if row and row["unit"]), "")
    arrow = (
        [
            " ",
            tag("span", {"aria-hidden": "true"}, ARROWS[known.better]),
            tag("span", {"class": "unseen"}, f", {DIRECTIONS[known.better]}"),
        ]
        if known.better != NEITHER
        else None
    )
    return join([known.label, arrow, tag("small", {"class": "unit"}, unit) if unit else None])


def _cells(name: str, rows: Sequence[Row | None], papers: dict[tuple[str, str], Row]) -> list[Html]:
    digits, best = decimals(row["value"] for row in rows if row), _best(name, rows)
    return [
        _cell(row, digits, row is not None and row["value"] == best, papers.get((name, row["system"])) if row else None)
        for row in rows
    ]


def _best(name: str, rows: Sequence[Row | None]) -> float | None:
    better = metric(name).better
    values = [
        row["value"] for row in rows if row and row["value"] is not None and row["method"] not in REFERENCE_SYSTEMS
    ]
    if better == NEITHER or len(values) < 2:
        return None
    best = max(values) if better > 0 else min(values)
    return float(best) if values.count(best) == 1 else None


def _cell(row: Row | None, digits: int, best: bool, paper: Row | None) -> Html:
    if row is None:
        return Html("–")
    if row["value"] is None:
        return tag("span", {"class": "undefined"}, "undefined")
    best = best and row["method"] not in REFERENCE_SYSTEMS
    value = fixed(row["value"], digits)
    parts: list[Html | None] = [
        tag("strong", value, " ★", tag("span", {"class": "unseen"}, "best")) if best else tag("span", value)
    ]
    bounds = interval(row["low"], row["high"], digits)
    parts.append(tag("small", bounds) if bounds else None)
    ends = [fixed(row[name], digits) for name in ("lowest", "highest") if row.get(name) is not None]
    if len(set(ends)) > 1:
        parts.append(tag("small", " … ".join(ends)))
    if paper is not None and row["split"] == "test":
        parts.append(tag("small", {"class": "paper"}, f"paper {fixed(paper['value'], 2)}"))
    return join(parts)


def _undefined(rows: list[Row]) -> Html | None:
    reasons = {(row["metric"], row["note"]): row for row in rows if row["value"] is None}
    if not reasons:
        return None
    lines = [tag("li", f"{metric(name).label}: {note or 'no reason was recorded'}") for name, note in reasons]
    return join([tag("h3", "Undefined"), tag("ul", lines)])


def _glossary(rows: list[Row]) -> Html:
    notes = {row["metric"]: row["note"] for row in rows if row["value"] is not None}
    names = list(dict.fromkeys(row["metric"] for row in rows))
    entries = [
        tag(
            "div",
            tag("dt", metric(name).label, " ", tag("code", name)),
            tag("dd", _meaning(name, notes.get(name) or "")),
        )
        for name in names
    ]
    return folded("What the metrics mean, and how they were computed", tag("dl", {"class": "glossary"}, entries))


def _meaning(name: str, note: str) -> str:
    known = metric(name)
    parts = [known.meaning, DIRECTIONS[known.better], note]
    return "; ".join(part for part in parts if part) + "."
