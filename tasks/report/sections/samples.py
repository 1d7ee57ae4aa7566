"""What the systems wrote for the same inputs, side by side. The browser's script only searches, sorts and pages it."""

from collections.abc import Sequence
from typing import Any

from tasks.formatting import fixed
from tasks.report.html import Html, join, quoted, shortened, tag
from tasks.report.names import REFERENCE_SYSTEMS, swept, system
from tasks.report.results import Results, Row, literal
from tasks.report.section import Section

SAMPLES = 200  # inputs at most
SAMPLE_BYTES = 400_000  # of all samples together
TEXT_CHARACTERS = 1_500  # of one text
MOST_SYSTEMS = 10
# A comparison comes by a cell's stages more than once: when it builds them, and when it reads what was built.
OF_CELLS = """
SELECT c.*, s.key FROM comparison_cells c
JOIN (SELECT cell, key, min(position) AS position FROM stages WHERE run = $run AND stage = 'evaluate' GROUP BY ALL) s
ON s.cell = c.cell WHERE c.run = $run ORDER BY s.position
"""
PAGE = 6  # samples; without the script the others are behind a line that unfolds them


def samples(results: Results) -> Section | None:
    """Inputs, spread over the split, each with its reference and every system's output."""
    chosen = shown_systems(results)
    if not chosen:
        return None
    total = results.ask("predictions", "SELECT count(DISTINCT id) AS n FROM predictions WHERE run = $run")[0]["n"]
    methods = [row["method"] for row in chosen]
    articles: list[Html] = []
    spent = 0
    for block in _blocks(results.ask("predictions", _spread(chosen, total)), methods):
        article = _article(len(articles) + 1, block, methods, results.styles)
        spent += len(article.encode())
        if articles and spent > SAMPLE_BYTES:
            break
        articles.append(article)
    rest = articles[PAGE:]
    folded_rest = (
        tag("details", {"id": "sample-rest"}, tag("summary", f"{len(rest)} more samples"), rest) if rest else None
    )
    listed = tag("div", {"id": "sample-list", "data-page": PAGE}, articles[:PAGE], folded_rest)
    lead = (
        f"{len(articles):,} of {total:,} inputs, evenly spread over the split. Texts are cut at {TEXT_CHARACTERS:,} "
        f"characters.{_of_cells(chosen)}"
    )
    return Section("samples", "What they wrote", join([_controls(methods), listed]), lead)


def shown_systems(results: Results) -> list[Row]:
    """Whose outputs are shown: what they are called here, and the system and the artifact that have them.

    Of a comparison these are its references and its methods, all of the first seed and the middle value of what was
    varied, and not more than one can read.
    """
    evaluated = results.ask("predictions", "SELECT DISTINCT method AS system, key FROM predictions WHERE run = $run")
    known = {(row["system"], row["key"]) for row in evaluated}
    order = list(results.styles)
    if not results.cells:
        found = [{"method": system, "system": system, "key": key, "cell": ""} for system, key in known]
        return sorted(found, key=lambda row: order.index(row["method"]))[:MOST_SYSTEMS]
    values = list(dict.fromkeys(cell["x"] for cell in results.cells))
    seed, middle = results.cells[0]["seed"], values[len(values) // 2]
    here = [row for row in results.ask("stages", OF_CELLS) if (row["seed"], row["x"]) == (seed, middle)]
    found = [row for row in here if (row["system"], row["key"]) in known]
    measured_by = [
        row | {"method": system, "system": system}
        for row in found[:1]
        for system, key in sorted(known, key=lambda each: order.index(each[0]))
        if key == row["key"] and system in results.references
    ]
    return (measured_by + found)[:MOST_SYSTEMS]


def listed_systems(chosen: Sequence[Row]) -> str:
    """Those systems as an SQL relation of `shown`, `system` and `key`."""
    values = ", ".join(f"({literal(row['method'])}, {literal(row['system'])}, {literal(row['key'])})" for row in chosen)
    return f"(VALUES {values}) chosen (shown, system, key)"


def _spread(chosen: Sequence[Row], total: int) -> str:
    return f"""
    WITH own AS (
        SELECT p.* REPLACE (shown AS method) FROM predictions p JOIN {listed_systems(chosen)}
        ON p.method = system AND p.key = chosen.key WHERE p.run = $run
    ),
    placed AS (SELECT id, row_number() OVER (ORDER BY id) - 1 AS place FROM (SELECT DISTINCT id FROM own))
    SELECT id, method, source, reference, prediction, num_tokens, truncated, reward FROM own
    WHERE id IN (SELECT id FROM placed WHERE place % {max(1, -(-total // SAMPLES))} = 0) ORDER BY id
    """


def _blocks(rows: Sequence[Row], methods: Sequence[str]) -> list[list[Row]]:
    """The rows of each input, in the order of the systems."""
    blocks: dict[Any, list[Row]] = {}
    for row in rows:
        blocks.setdefault(row["id"], []).append(row)
    return [sorted(block, key=lambda row: methods.index(row["method"])) for block in blocks.values()]


def _of_cells(chosen: Sequence[Row]) -> str:
    cell = next((row for row in chosen if row["cell"]), None)
    if cell is None:
        return ""
    which = ", ".join(part for part in (f"seed {cell['seed']}", swept(cell)) if part)
    return f" Of the comparison's runs these are those with {which}."


def _pair(methods: Sequence[str]) -> tuple[str, str] | None:
    """The last trained student and the first, which is what it started from; None where there are not two."""
    students = [method for method in methods if method not in REFERENCE_SYSTEMS]
    return (students[-1], students[0]) if len(students) > 1 else None


def _controls(methods: Sequence[str]) -> Html:
    """Search, sorting, filter and paging: hidden where no script brings them to life."""
    pair, sortings = _pair(methods), [("order", "as in the data")]
    if pair is not None:
        later, first = (system(method) for method in pair)
        sortings += [
            ("up", f"{later} most rewarded over {first} first"),
            ("down", f"{later} least rewarded over {first} first"),
        ]
    filters = [
        ("all", "all"),
        ("cut", "with an output that was cut off"),
        ("same", "where all systems agree"),
        ("differ", "where they differ"),
    ]
    return tag(
        "div",
        {"class": "controls", "id": "sample-controls", "role": "search", "aria-label": "Samples", "hidden": True},
        tag("label", "Search ", tag("input", {"type": "search", "id": "sample-search", "autocomplete": "off"})),
        tag("label", "Order ", _select("sample-sort", sortings)),
        tag("label", "Show ", _select("sample-filter", filters)),
        tag(
            "span",
            {"class": "pager"},
            tag("button", {"type": "button", "id": "sample-previous"}, "← Previous"),
            tag("span", {"id": "sample-status", "role": "status"}),
            tag("button", {"type": "button", "id": "sample-next"}, "Next →"),
        ),
        tag("p", {"class": "note"}, "With the focus on the list, ← and → turn its pages."),
    )


def _select(name: str, options: Sequence[tuple[str, str]]) -> Html:
    return tag("select", {"id": name}, [tag("option", {"value": value}, text) for value, text in options])


def _article(number: int, block: Sequence[Row], methods: Sequence[str], style: dict[str, int]) -> Html:
    """One input with everything that was written for it."""
    rewards = {row["method"]: row["reward"] for row in block}
    pair = _pair(methods)
    later, first = (rewards.get(method) for method in pair) if pair else (None, None)
    marks = {
        "data-gain": f"{later - first:.4g}" if later is not None and first is not None else None,
        "data-cut": any(row["truncated"] for row in block),
        "data-same": len({row["prediction"] for row in block}) == 1,
    }
    texts = [_text("Input", block[0]["source"], "input"), _text("Reference", block[0]["reference"], "reference")]
    texts += [
        _text(system(row["method"]), row["prediction"], f"output s{style[row['method']]}", _told(row)) for row in block
    ]
    heading = tag("h3", f"Sample {number}", tag("small", f"id {block[0]['id']}"))
    return tag("article", {"class": "sample"} | marks, heading, tag("dl", texts))


def _text(name: str, text: str | None, kind: str, told: str = "") -> Html | None:
    if text is None:
        return None
    shown, left = shortened(text, TEXT_CHARACTERS)
    more = tag("small", f" … {left:,} more characters") if left else None
    written = quoted(shown) if text.strip() else tag("em", "(empty)")
    below = tag("small", {"class": "told"}, told) if told else None
    return tag(
        "div",
        {"class": kind},
        tag("dt", name),
        tag("dd", {"dir": "auto"}, written, more),
        tag("dd", below) if below else None,
    )


def _told(row: Row) -> str:
    parts = [f"{row['num_tokens']} tokens" if row["num_tokens"] is not None else ""]
    parts.append(f"reward {fixed(row['reward'], 2)}" if row["reward"] is not None else "")
    parts.append("cut off" if row["truncated"] else "")
    return ", ".join(part for part in parts if part)
