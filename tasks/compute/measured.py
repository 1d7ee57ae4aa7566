"""The results of an evaluation on disk: metrics and differences with intervals, and the resampled values behind them.

`replicates.parquet` has the values of each metric in every sample, so that later comparisons (over seeds, between
runs) are computed from it without an output being looked at again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.metrics.bootstrap import Measured, MetricValue, paired_differences

_NUMBERS = [("metric", pa.string()), *((name, pa.float64()) for name in ("value", "low", "high"))]
_NUMBERS += [("n", pa.int64()), ("unit", pa.string()), ("note", pa.string())]
METRICS = pa.schema([("system", pa.string()), ("split", pa.string()), *_NUMBERS])
DIFFERENCES = pa.schema([("system", pa.string()), ("baseline", pa.string()), ("split", pa.string()), *_NUMBERS])
# of one system; samples: the value, then that of each resample, NaN where undefined
REPLICATES = pa.schema([*_NUMBERS, ("samples", pa.list_(pa.float64()))])
SYSTEM_REPLICATES = pa.schema([("system", pa.string()), ("split", pa.string()), *REPLICATES])


def write_measured(directory: Path, split: str, found: Mapping[str, Measured]) -> None:
    """Write metrics.parquet, differences.parquet (each system minus each one before it) and replicates.parquet.

    found: name of the system -> what was measured of it, all on the same resamples. Raises ValueError if they are not.
    """
    metrics = [_row(value, system=name, split=split) for name, each in found.items() for value in each.metrics]
    names = list(found)
    differences = [
        _row(value, system=system, baseline=baseline, split=split)
        for i, system in enumerate(names)
        for baseline in names[:i]
        for value in paired_differences(found[system], found[baseline])
    ]
    replicates = [{"system": name, "split": split} | row for name, each in found.items() for row in _rows(each)]
    for file, rows, schema in (
        ("metrics", metrics, METRICS),
        ("differences", differences, DIFFERENCES),
        ("replicates", replicates, SYSTEM_REPLICATES),
    ):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), directory / f"{file}.parquet")


def write_replicates(path: Path, measured: Measured) -> None:
    """Write what was measured of one system."""
    pq.write_table(pa.Table.from_pylist(list(_rows(measured)), schema=REPLICATES), path)


def read_replicates(path: Path, system: str | None = None) -> Measured:
    """What was measured of the one system of `path`, or of the `system` of a file that has several."""
    filters = None if system is None else [("system", "=", system)]
    rows = pq.read_table(path, filters=filters, columns=REPLICATES.names).to_pylist()
    samples = {row["metric"]: np.array(row.pop("samples"), dtype=np.float64) for row in rows}
    return Measured(metrics=[MetricValue(**row) for row in rows], samples=samples)


def _rows(measured: Measured) -> list[dict[str, Any]]:
    return [_row(value, samples=measured.samples[value.metric]) for value in measured.metrics]


def _row(value: MetricValue, **columns: Any) -> dict[str, Any]:
    return columns | vars(value)
