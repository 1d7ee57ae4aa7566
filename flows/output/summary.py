"""The end of a run: the comparison table, a few samples side by side, where the results are, what to try next."""

from __future__ import annotations

import json
from pathlib import Path

from flows.output import grid_summary, show
from flows.output.grid import Grid, difference, in_order, interval, read, system, why_undefined
from tasks.formatting import decimals

NUM_SAMPLES = 3
MOST_PAIRS = 3


def results(evaluation: Path) -> Grid:
    """The table that a run ends with: of its systems, or, for a comparison, of its methods."""
    return grid_summary.methods(evaluation) if grid_summary.is_comparison(evaluation) else comparison(evaluation)


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
    """The warnings in an artifact's manifest."""
    manifest = directory / "manifest.json"
    found: list[str] = (
        json.loads(manifest.read_text(encoding="utf-8"))["stats"].get("warnings", []) if manifest.exists() else []
    )
    return found


def show_results(name: str, run_id: str, evaluation: Path, root: Path) -> None:
    """Print tables, samples, where the results are and what to try next."""
    compared = grid_summary.is_comparison(evaluation)
    show.heading("Comparison, with 95 % intervals")
    _show(results(evaluation))
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
