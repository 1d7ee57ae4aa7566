"""The end of a comparison: each metric of each method over its seeds, and which differences are significant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.output.grid import Grid, difference, in_order, interval, read, system, why_undefined
from tasks.formatting import decimals, probability
from tasks.report.pictures.comparison import WANTED

HOLDS = 0.05  # corrected p below which a difference is starred


def is_comparison(directory: Path) -> bool:
    """Whether an artifact is that of a comparison."""
    return (directory / "comparison.parquet").is_file()


def methods(directory: Path) -> Grid:
    """A row per metric and swept value, a column per method: mean over seeds [95 % interval over inputs and seeds].

    A reference system, which the sweep does not change, has the same value in every row of its metric.
    """
    rows = read(directory / "comparison.parquet")
    names, points = in_order(rows, "method"), [x for x in in_order(rows, "x") if x is not None] or [None]
    found = {(row["metric"], row["method"], row["x"]): row for row in rows}
    x_name = next((row["x_name"] for row in rows if row["x_name"]), None)
    cells = []
    for metric in in_order(rows, "metric"):
        for x in points:
            of_row = [found.get((metric, name, x), found.get((metric, name, None))) for name in names]
            if all(row is None or row["value"] is None for row in of_row):
                continue  # the notes say why
            digits = decimals([row["value"] for row in of_row if row])
            place = [] if x is None else [f"{x:g}"]
            cells.append([metric, *place, *(interval(row, digits) for row in of_row)])
    swept = [] if x_name is None else [x_name]
    return Grid([f"{rows[0]['split']} split", *swept, *map(system, names)], cells, why_undefined(rows, "method"))


def tested(directory: Path) -> Grid:
    """The differences between methods in the metrics that count; `*` where Holm's p is below 0.05."""
    rows = [row for row in read(directory / "comparison_differences.parquet") if row["metric"] in WANTED]
    references = _references(directory)
    cells = []
    for row in rows:
        if row["baseline"] in references or row["value"] is None:
            continue
        place = [] if row["x"] is None else [f"{row['x']:g}"]
        digits = decimals([row["value"]])
        pair = f"{system(row['method'])} − {system(row['baseline'])}"
        cells.append(
            [row["metric"], *place, pair, difference(row, digits, holds=_holds(row)), probability(row["p_corrected"])]
        )
    swept = [] if not rows or rows[0]["x_name"] is None else [rows[0]["x_name"]]
    return Grid(["metric", *swept, "pair", "difference", "p (Holm)"], cells, [])


def _holds(row: dict[str, Any]) -> bool:
    return row["p_corrected"] is not None and row["p_corrected"] < HOLDS


def _references(directory: Path) -> set[str]:
    """The reference systems: those that are never the method of a difference."""
    named = {row["method"] for row in read(directory / "comparison_differences.parquet")}
    return {row["method"] for row in read(directory / "comparison.parquet")} - named
