"""The stage `compare`: a grid of runs as one table, each method over its seeds, and what differs between methods."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.metrics.bootstrap import Measured
from kd_core.metrics.comparison import MethodDifference, MethodValue, holm, method_differences, method_values
from tasks.compute.measured import read_replicates
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage

_PLACE = [("x_name", pa.string()), ("x", pa.float64()), ("split", pa.string()), ("metric", pa.string())]
_NUMBERS = [(name, pa.float64()) for name in ("value", "low", "high")]
_END = [("seeds", pa.int32()), ("n", pa.int64()), ("unit", pa.string()), ("note", pa.string())]
COMPARISON = pa.schema(
    [("method", pa.string()), *_PLACE, *_NUMBERS, ("lowest", pa.float64()), ("highest", pa.float64()), *_END]
)
DIFFERENCES = pa.schema(
    [
        ("method", pa.string()),
        ("baseline", pa.string()),
        *_PLACE,
        *_NUMBERS,
        ("p", pa.float64()),  # two-sided, of no difference
        ("p_corrected", pa.float64()),  # Holm's, for all differences of the metric in this table
        *_END,
    ]
)
CELLS = pa.schema(
    [
        ("cell", pa.string()),
        ("method", pa.string()),
        ("x_name", pa.string()),
        ("x", pa.float64()),
        ("seed", pa.int64()),
        ("system", pa.string()),  # what the method is called in the cell's own evaluation
    ]
)


ALARM = 0.05  # corrected p


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid: which variant, at which x (alpha, say), with which seed."""

    name: str
    variant: str
    seed: int
    x: float | None = None


@stage
def compare(build: Build, results: Mapping[str, Artifact], cells: tuple[Cell, ...], x_name: str | None) -> None:
    """Write comparison, comparison_differences and comparison_cells.parquet from the evaluations of all cells.

    A variant is its run's last system; the systems before it (teacher, start) are references, the same at every x.
    """
    variants = {cell.variant for cell in cells}
    values: list[dict[str, Any]] = []
    differences: list[tuple[float | None, MethodDifference]] = []
    split, evaluated = "", {}
    for x in dict.fromkeys(cell.x for cell in cells):
        references: dict[tuple[str, int], Measured] = {}
        compared: dict[tuple[str, int], Measured] = {}
        for cell in (each for each in cells if each.x == x):
            path = results[cell.name].path / "replicates.parquet"
            *others, last, split = systems(path)
            for name in others:
                references.setdefault((name, cell.seed), read_replicates(path, name))
            compared[cell.variant, cell.seed], evaluated[cell.name] = read_replicates(path, last), last
        for value in method_values(references | compared):
            place = (x_name, x) if value.method in variants else (None, None)
            values.append(_value_row(value, *place, split))
        found = method_differences(references | compared)
        differences += [(x, each) for each in found if each.method in variants]
    rows = [_difference_row(each, x_name, x, split) for x, each in corrected(differences)]
    pq.write_table(pa.Table.from_pylist(_once(values), schema=COMPARISON), build.dir / "comparison.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=DIFFERENCES), build.dir / "comparison_differences.parquet")
    placed = [_cell_row(cell, x_name, evaluated[cell.name]) for cell in cells]
    pq.write_table(pa.Table.from_pylist(placed, schema=CELLS), build.dir / "comparison_cells.parquet")
    build.record(cells=len(cells))
    _warn_of_few_resamples(build, differences, next(iter(compared.values())))


def _warn_of_few_resamples(
    build: Build, differences: list[tuple[float | None, MethodDifference]], measured: Measured
) -> None:
    """Warn where no difference could be significant: before correction, no p is below 2 / (resamples + 1)."""
    counts = Counter(each.mean.metric for _, each in differences if each.p is not None)
    resamples = len(next(iter(measured.samples.values()))) - 1
    most = max(counts.values(), default=0)
    if most * 2 / (resamples + 1) > ALARM:
        build.warn(
            f"with {resamples} resamples no difference among {most} can have a corrected p below {ALARM}; "
            f"set evaluation.resamples to {round(2 * most / ALARM)} or more"
        )


def systems(path: Any) -> list[str]:
    """The systems of an evaluation in order, without those of single rounds; its split as the last item."""
    table = pq.read_table(path, columns=["system", "split"])
    names = [name for name in dict.fromkeys(table["system"].to_pylist()) if not name.startswith("round_")]
    return [*names, str(table["split"][0])]


def corrected(
    differences: list[tuple[float | None, MethodDifference]],
) -> list[tuple[float | None, MethodDifference]]:
    """Holm's p over all differences of a metric at every x; `method_differences` has corrected for those at one x."""
    by_metric: dict[str, list[int]] = {}
    for number, (_, each) in enumerate(differences):
        if each.p is not None:
            by_metric.setdefault(each.mean.metric, []).append(number)
    found = list(differences)
    for numbers in by_metric.values():
        for number, p in zip(numbers, holm([differences[i][1].p or 0.0 for i in numbers]), strict=True):
            x, each = differences[number]
            found[number] = x, replace(each, p_corrected=p, num_comparisons=len(numbers))
    return found


def _once(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without repetitions: references are the same at every x."""
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        seen.setdefault((row["method"], row["x"], row["metric"]), row)
    return list(seen.values())


def _cell_row(cell: Cell, x_name: str | None, system: str) -> dict[str, Any]:
    place = {"x_name": x_name, "x": cell.x, "seed": cell.seed, "system": system}
    return {"cell": cell.name, "method": cell.variant} | place


def _value_row(value: MethodValue, x_name: str | None, x: float | None, split: str) -> dict[str, Any]:
    place = {"method": value.method, "x_name": x_name, "x": x, "split": split, "seeds": value.num_seeds}
    return place | vars(value.mean) | {"lowest": value.lowest, "highest": value.highest}


def _difference_row(each: MethodDifference, x_name: str | None, x: float | None, split: str) -> dict[str, Any]:
    place = {"method": each.method, "baseline": each.baseline, "x_name": x_name, "x": x, "split": split}
    return place | vars(each.mean) | {"p": each.p, "p_corrected": each.p_corrected, "seeds": each.num_seeds}
