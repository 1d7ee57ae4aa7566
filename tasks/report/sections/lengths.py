"""How long the systems' outputs are."""

from collections.abc import Sequence

from tasks.formatting import fixed, short
from tasks.report.charts import histogram
from tasks.report.figures import folded, table
from tasks.report.html import tag
from tasks.report.marks import swatch
from tasks.report.names import system
from tasks.report.results import Results, Row
from tasks.report.section import Section
from tasks.report.sections.samples import listed_systems, shown_systems

BINS = 30


def lengths(results: Results) -> Section | None:
    """A histogram of the number of tokens for each system, under one another on one axis."""
    chosen = shown_systems(results)
    if not chosen:
        return None
    rows = results.ask("predictions", _lengths(chosen))
    by_system: dict[str, list[Row]] = {row["method"]: [] for row in chosen}
    for row in rows:
        by_system.setdefault(row["method"], []).append(row)
    top = max(row["share"] for row in rows)
    first = rows[0]
    if first["shortest"] == first["longest"]:  # continuations of running text
        return None
    style, names = results.styles, {method: system(method) for method in by_system}
    strips, summary = [], []
    for method, of_system in by_system.items():
        shares = [0.0] * (1 + (first["longest"] - first["shortest"]) // first["width"])
        for row in of_system:
            shares[row["bin"]] = row["share"]
        told = of_system[0]
        half = f"half of the outputs have {short(told['q1'])} to {short(told['q3'])} tokens"
        text = f"{half}, the median {short(told['median'])}"
        strips.append(
            tag(
                "div",
                {"class": "ridge"},
                tag(
                    "p",
                    swatch(style[method], line=False),
                    names[method],
                    tag("small", f"median {short(told['median'])}, {fixed(told['cut'], 1)} % cut off"),
                ),
                histogram(names[method], style[method], shares, top, text),
            )
        )
        summary.append(
            [names[method], *(short(told[name]) for name in ("lowest", "q1", "median", "q3", "highest", "cut"))]
        )
    axis = tag(
        "p",
        {"class": "ends", "aria-hidden": "true"},
        tag("span", short(first["shortest"])),
        tag("span", "tokens, its end included"),
        tag("span", short(first["longest"])),
    )
    headers = ["system", "shortest", "first quartile", "median", "third quartile", "longest", "cut off (%)"]
    return Section(
        "lengths",
        "How long the outputs are",
        tag(
            "figure",
            tag("figcaption", "Share of outputs by number of tokens, on one axis for all"),
            tag("div", {"class": "ridges"}, strips, axis),
            folded("The numbers", table("Tokens per output", headers, summary)),
        ),
    )


def _lengths(chosen: Sequence[Row]) -> str:
    return f"""
    WITH own AS (
        SELECT shown AS method, num_tokens, truncated FROM predictions p JOIN {listed_systems(chosen)}
        ON p.method = system AND p.key = chosen.key WHERE p.run = $run
    ),
    ends AS (
        SELECT min(num_tokens) AS shortest, max(num_tokens) AS longest,
               greatest(1, ceil((longest - shortest + 1) / {BINS})::INT) AS width FROM own
    ),
    told AS (
        SELECT method, count(*) AS n, min(num_tokens) AS lowest, median(num_tokens) AS median,
               quantile_cont(num_tokens, 0.25) AS q1, quantile_cont(num_tokens, 0.75) AS q3,
               max(num_tokens) AS highest, 100 * avg(truncated::INT) AS cut
        FROM own GROUP BY method
    ),
    binned AS (
        SELECT method, (num_tokens - shortest) // width AS bin, count(*) AS count
        FROM own, ends GROUP BY ALL
    )
    SELECT b.bin, b.count / t.n AS share, t.*, e.* FROM binned b JOIN told t USING (method), ends e
    ORDER BY t.method, b.bin
    """
