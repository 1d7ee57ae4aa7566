"""The end of a run: the comparison table, a few samples side by side, where the results are, what to try next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import show
from tasks.systems import SYSTEMS

NUM_SAMPLES = 3


@dataclass(frozen=True)
class Grid:
    """Headers and rows of a table, as text."""

    headers: list[str]
    rows: list[list[str]]
    notes: list[str]


def comparison(evaluation: Path) -> Grid:
    """A row per metric, a column per system: `value [low, high]`, or a dash and a note where it is undefined."""
    rows = _read(evaluation / "metrics.parquet")
    systems, metrics = _in_order(rows, "system"), _in_order(rows, "metric")
    found = {(row["metric"], row["system"]): row for row in rows}
    notes = [
        f"{row['metric']}, {_system(row['system'])}: {row['note']}"
        for row in rows
        if row["value"] is None and row["note"]
    ]
    cells = []
    for metric in metrics:
        of_metric = [found.get((metric, system)) for system in systems]
        digits = _decimals([row["value"] for row in of_metric if row])
        unit = next((row["unit"] for row in of_metric if row and row["unit"]), "")
        cells.append([f"{metric} ({unit})" if unit else metric, *(_interval(row, digits) for row in of_metric)])
    return Grid([f"{rows[0]['split']} split", *map(_system, systems)], cells, notes)


def differences(evaluation: Path) -> Grid:
    """A row per metric with the paired differences between systems; `*` where the interval excludes 0."""
    rows = _read(evaluation / "differences.parquet")
    pairs = list(dict.fromkeys((row["system"], row["baseline"]) for row in rows))
    found = {(row["metric"], row["system"], row["baseline"]): row for row in rows}
    cells = []
    for metric in _in_order(rows, "metric"):
        of_metric = [found.get((metric, *pair)) for pair in pairs]
        digits = _decimals([row["value"] for row in of_metric if row])
        cells.append([metric, *(_difference(row, digits) for row in of_metric)])
    headers = ["difference", *(f"{_system(system)} − {_system(baseline)}" for system, baseline in pairs)]
    return Grid(headers, cells, [])


def samples(evaluation: Path, number: int = NUM_SAMPLES) -> list[list[tuple[str, str]]]:
    """A few test inputs, spread over the split, each with its reference and every system's output, labelled."""
    rows = _read(evaluation / "predictions.parquet")
    ids = _in_order(rows, "id")
    chosen = ids[:: max(1, len(ids) // number)][:number]
    blocks = []
    for each in chosen:
        of_input = [row for row in rows if row["id"] == each]
        block = [("context", of_input[0]["source"]), ("reference", of_input[0]["reference"])]
        blocks.append(block + [(_system(row["system"]), row["prediction"]) for row in of_input])
    return blocks


def show_results(name: str, run_id: str, evaluation: Path, root: Path) -> None:
    """Print all of it."""
    grid = comparison(evaluation)
    show.heading("Comparison, with 95 % intervals")
    show.table(grid.headers, grid.rows)
    for note in grid.notes:
        print(f"– {note}")
    grid = differences(evaluation)
    if grid.rows:
        show.heading("Paired differences (* = the interval excludes 0)")
        show.table(grid.headers, grid.rows)
    for number, block in enumerate(samples(evaluation), start=1):
        show.heading(f"Sample {number}")
        show.labelled(block)
    show.heading("Where")
    show.labelled([("results", str(root / "results.duckdb")), ("artifacts", str(root / "artifacts")), ("run", run_id)])
    show.heading("Try next")
    distill = show.program()
    print(f'{distill} sql "select method, metric, value, low, high from metrics"')
    print(f"{distill} export {name} ./{name}-student")
    print(f"{distill} run {name} --seed 1")


def _read(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _in_order(rows: Sequence[dict[str, Any]], column: str) -> list[Any]:
    return list(dict.fromkeys(row[column] for row in rows))


def _system(name: str) -> str:
    return SYSTEMS.get(name, name)


def _decimals(values: Sequence[float | None]) -> int:
    """Decimals that show about three digits of the largest value of a row."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 3 if largest < 1 else 2 if largest < 100 else 1


def _interval(row: dict[str, Any] | None, digits: int) -> str:
    if row is None or row["value"] is None:
        return "–"
    text = f"{row['value']:.{digits}f}"
    return text if row["low"] is None else f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _difference(row: dict[str, Any] | None, digits: int) -> str:
    if row is None or row["value"] is None:
        return "–"
    excludes_0 = row["low"] > 0 or row["high"] < 0
    return (
        f"{row['value']:+.{digits}f} [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]{'*' if excludes_0 else ''}"
    )
