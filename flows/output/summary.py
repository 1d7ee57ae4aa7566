"""The end of a run: the comparison table, a few samples side by side, where the results are, what to try next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.output import show
from tasks.systems import SYSTEMS

NUM_SAMPLES = 3
MOST_PAIRS = 3


@dataclass(frozen=True)
class Grid:
    """Headers and rows of a table, as text."""

    headers: list[str]
    rows: list[list[str]]
    notes: list[str]


def comparison(evaluation: Path) -> Grid:
    """A row per metric, a column per system: `value [low, high]`, or a dash and a note where it is undefined."""
    rows = read(evaluation / "metrics.parquet")
    systems, metrics = in_order(rows, "system"), in_order(rows, "metric")
    found = {(row["metric"], row["system"]): row for row in rows}
    cells = []
    for metric in metrics:
        of_metric = [found.get((metric, name)) for name in systems]
        if all(row is None or row["value"] is None for row in of_metric):
            continue  # the notes say why
        digits = decimals([row["value"] for row in of_metric if row])
        unit = next((row["unit"] for row in of_metric if row and row["unit"]), "")
        cells.append([f"{metric} ({unit})" if unit else metric, *(interval(row, digits) for row in of_metric)])
    return Grid([f"{rows[0]['split']} split", *map(system, systems)], cells, why_undefined(rows, "system"))


def why_undefined(rows: Sequence[dict[str, Any]], column: str) -> list[str]:
    """A line per metric and reason that leaves it undefined; the systems are named where it is not all of them."""
    named: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["value"] is None and row["note"]:
            named.setdefault((row["metric"], row["note"]), []).append(system(row[column]))
    everyone = {system(row[column]) for row in rows}
    return [
        f"{metric}: {note}" if set(of) == everyone else f"{metric}, {', '.join(dict.fromkeys(of))}: {note}"
        for (metric, note), of in named.items()
    ]


def differences(evaluation: Path) -> Grid:
    """A row per metric with the paired differences between systems; `*` where the interval excludes 0."""
    rows = read(evaluation / "differences.parquet")
    pairs = list(dict.fromkeys((row["system"], row["baseline"]) for row in rows))
    if len(pairs) > MOST_PAIRS:  # many systems: only the last one, which the run is about, against each
        pairs = [pair for pair in pairs if pair[0] == pairs[-1][0]]
    found = {(row["metric"], row["system"], row["baseline"]): row for row in rows}
    cells = []
    for metric in in_order(rows, "metric"):
        of_metric = [found.get((metric, *pair)) for pair in pairs]
        if all(row is None or row["value"] is None for row in of_metric):
            continue
        digits = decimals([row["value"] for row in of_metric if row])
        cells.append([metric, *(difference(row, digits) for row in of_metric)])
    headers = ["difference", *(f"{system(name)} − {system(baseline)}" for name, baseline in pairs)]
    return Grid(headers, cells, [])


def samples(evaluation: Path, number: int = NUM_SAMPLES) -> list[list[tuple[str, str]]]:
    """A few test inputs, spread over the split, each with its reference and every system's output, labelled."""
    rows = read(evaluation / "predictions.parquet")
    ids = in_order(rows, "id")
    chosen = ids[:: max(1, len(ids) // number)][:number]
    blocks = []
    for each in chosen:
        of_input = [row for row in rows if row["id"] == each]
        block = [("context", of_input[0]["source"]), ("reference", of_input[0]["reference"])]
        blocks.append(block + [(system(row["system"]), row["prediction"]) for row in of_input])
    return blocks


def warnings(directory: Path) -> list[str]:
    """What an artifact's manifest says must be read."""
    import json

    manifest = directory / "manifest.json"
    found: list[str] = (
        json.loads(manifest.read_text(encoding="utf-8"))["stats"].get("warnings", []) if manifest.exists() else []
    )
    return found


def show_results(name: str, run_id: str, evaluation: Path, root: Path) -> None:
    """Print all of it."""
    from flows.output import grid_summary

    compared = grid_summary.is_comparison(evaluation)
    show.heading("Comparison, with 95 % intervals")
    _show(grid_summary.methods(evaluation) if compared else comparison(evaluation))
    for warning in warnings(evaluation):
        show.heading(f"WARNING: {warning}")
    grid = grid_summary.tested(evaluation) if compared else differences(evaluation)
    if grid.rows:
        star = "corrected p below 0.05" if compared else "the interval excludes 0"
        show.heading(f"Paired differences (* = {star})")
        _show(grid)
    for number, block in enumerate([] if compared else samples(evaluation), start=1):
        show.heading(f"Sample {number}")
        show.labelled(block)
    show.heading("Where")
    places = [("report", root / "reports" / f"{run_id}.html"), ("results", root / "results.duckdb")]
    places += [("artifacts", root / "artifacts")]
    show.labelled([*((name, str(path)) for name, path in places), ("run", run_id)])
    show.heading("Try next")
    distill = show.program()
    if compared:
        print(f"{distill} sql \"from comparison where metric = '{_first_metric(evaluation)}'\"")
        return
    print(f'{distill} sql "select method, metric, value, low, high from metrics"')
    print(f"{distill} export {name} ./{name}-student")
    print(f"{distill} run {name} --seed 1")


def _show(grid: Grid) -> None:
    show.table(grid.headers, grid.rows)
    for note in grid.notes:
        print(f"– {note}")


def _first_metric(directory: Path) -> str:
    return str(read(directory / "comparison.parquet")[0]["metric"])


def read(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def in_order(rows: Sequence[dict[str, Any]], column: str) -> list[Any]:
    return list(dict.fromkeys(row[column] for row in rows))


def system(name: str) -> str:
    """What a system is called where people read of it."""
    return SYSTEMS.get(name, name)


def decimals(values: Sequence[float | None]) -> int:
    """Decimals that show about three digits of the largest value of a row."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 3 if largest < 1 else 2 if largest < 100 else 1


def interval(row: dict[str, Any] | None, digits: int) -> str:
    if row is None or row["value"] is None:
        return "–"
    text = f"{row['value']:.{digits}f}"
    return text if row["low"] is None else f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def difference(row: dict[str, Any] | None, digits: int, *, holds: bool | None = None) -> str:
    """`+1.23 [+0.45, +2.01]*`, starred where it `holds`: by default where the interval excludes 0."""
    if row is None or row["value"] is None:
        return "–"
    if row["low"] is None:
        return f"{row['value']:+.{digits}f}"
    if holds is None:
        holds = row["low"] > 0 or row["high"] < 0
    star = "*" if holds else ""
    return f"{row['value']:+.{digits}f} [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]{star}"
