"""results.duckdb: all runs of a store as SQL relations, rebuilt from run records, manifests and Parquet files.

Small relations are tables; the large ones are views over the artifacts' Parquet files, which never change. The file is
written beside and swapped in, so that a reader sees the old one or the new one, and nobody waits for a lock.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv

from tasks.runs import RunRecord, read_runs
from tasks.store import Artifact, Manifest, Store

DATABASE = "results.duckdb"
PUBLISHED = Path(__file__).resolve().parents[1] / "data" / "published_results.csv"

RUNS = pa.schema(
    [
        ("run", pa.string()),
        ("name", pa.string()),
        ("method", pa.string()),
        ("dataset", pa.string()),
        ("seed", pa.int64()),
        ("state", pa.string()),
        ("started", pa.timestamp("ms", tz="UTC")),
        ("finished", pa.timestamp("ms", tz="UTC")),
        ("seconds", pa.float64()),
        ("error", pa.string()),
        ("parameters", pa.string()),
    ]
)
STAGES = pa.schema(
    [
        ("run", pa.string()),
        ("position", pa.int32()),
        ("stage", pa.string()),
        ("key", pa.string()),
        ("outcome", pa.string()),
        ("seconds", pa.float64()),
        ("why", pa.string()),
        ("build_seconds", pa.float64()),
        ("tokens_per_second", pa.float64()),
        ("bytes", pa.int64()),
        ("built", pa.timestamp("ms", tz="UTC")),
        ("path", pa.string()),
        ("stats", pa.string()),
        ("machine", pa.string()),
    ]
)
LINEAGE = pa.schema(
    [
        ("stage", pa.string()),
        ("key", pa.string()),
        ("input", pa.string()),
        ("input_stage", pa.string()),
        ("input_key", pa.string()),
    ]
)

# relation -> (stage, its files, select list); `f` is the Parquet file's row, `s` the row of `stages` that it belongs to
_MEASURED = "f.split, f.metric, f.value, f.low, f.high, f.n, f.unit, f.note"
TABLES = {
    "metrics": ("evaluate", "metrics.parquet", f"r.run, r.name, f.system AS method, r.dataset, r.seed, {_MEASURED}"),
    "differences": (
        "evaluate",
        "differences.parquet",
        f"r.run, r.name, f.system AS method, f.baseline, r.dataset, r.seed, {_MEASURED}",
    ),
}
VIEWS = {
    "predictions": (
        "evaluate",
        "predictions.parquet",
        "s.run, f.id, f.system AS method, f.source, f.reference, f.prediction, f.num_tokens, f.truncated, f.reward",
    ),
    "training_log": ("*", "training_log.parquet", "s.run, s.stage, f.step, f.metric, f.value"),
    "teacher_scores": ("score", "outputs-*.parquet", "s.run, f.id, f.text, f.token_ids, f.log_prob, f.truncated"),
    "rollouts": (
        "llmr",
        "rollouts.parquet",
        "s.run, f.step, f.id, f.position, f.token, f.token_id, f.q_value, f.value, f.reward, f.gain, f.log_prob",
    ),
    "dropped": ("prepare", "dropped.parquet", "s.run, f.split, f.dialogue, f.source, f.target, f.reason"),
}
# What an empty relation looks like before any run has filled it: a view over no file at all would be an error.
EMPTY = {
    "metrics": "run VARCHAR, name VARCHAR, method VARCHAR, dataset VARCHAR, seed BIGINT, split VARCHAR, "
    "metric VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, n BIGINT, unit VARCHAR, note VARCHAR",
    "differences": "run VARCHAR, name VARCHAR, method VARCHAR, baseline VARCHAR, dataset VARCHAR, seed BIGINT, "
    "split VARCHAR, metric VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, n BIGINT, unit VARCHAR, note VARCHAR",
    "predictions": "run VARCHAR, id BIGINT, method VARCHAR, source VARCHAR, reference VARCHAR, prediction VARCHAR, "
    "num_tokens INTEGER, truncated BOOLEAN, reward DOUBLE",
    "training_log": "run VARCHAR, stage VARCHAR, step BIGINT, metric VARCHAR, value DOUBLE",
    "teacher_scores": "run VARCHAR, id BIGINT, text VARCHAR, token_ids INTEGER[], log_prob FLOAT, truncated BOOLEAN",
    "rollouts": "run VARCHAR, step BIGINT, id BIGINT, position INTEGER, token VARCHAR, token_id INTEGER, "
    "q_value FLOAT, value FLOAT, reward FLOAT, gain FLOAT, log_prob FLOAT",
    "dropped": "run VARCHAR, split VARCHAR, dialogue VARCHAR, source VARCHAR, target VARCHAR, reason VARCHAR",
}
PAPER_VS_OURS = """
CREATE VIEW paper_vs_ours AS
SELECT p.paper, p.place, p.row, p.dataset, p.metric, p.value AS paper_value,
       m.value AS our_value, m.low, m.high, m.value - p.value AS difference, m.run
FROM published p LEFT JOIN metrics m
  ON m.dataset = p.our_dataset AND m.method = p.our_method AND m.metric = p.metric AND m.split = 'test'
"""


def build_catalog(store: Store) -> Path:
    """Rebuild results.duckdb and return its path. Two processes that end at once take turns."""
    target = store.root / DATABASE
    fresh = target.with_name(f".{DATABASE}.{os.getpid()}")
    with _one_at_a_time(store):
        try:
            fresh.unlink(missing_ok=True)
            with duckdb.connect() as connection:
                connection.execute(f"ATTACH {_literal(fresh)} AS results (STORAGE_VERSION 'v1.2.0')")
                connection.execute("USE results")
                _fill(connection, store, read_runs(store))
                connection.execute("USE memory")
                connection.execute("DETACH results")
            target.with_name(f"{DATABASE}.wal").unlink(missing_ok=True)
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)
            fresh.with_name(f"{fresh.name}.wal").unlink(missing_ok=True)
    return target


def query(store: Store, sql: str) -> pa.Table:
    """The answer to a query, read-only. Runs that have ended without rebuilding the results are taken in first.

    Raises ValueError in one line for a query that DuckDB refuses.
    """
    path = store.root / DATABASE
    if _is_stale(store, path):
        build_catalog(store)
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            answer = connection.sql(sql)
            return pa.table({}) if answer is None else answer.to_arrow_table()  # None: a statement, not a question
    except duckdb.Error as error:
        raise ValueError(f"{_first_line(error)}\nthe relations are: {', '.join(relations())}") from None


def relations() -> list[str]:
    """What can be asked."""
    return ["runs", "stages", "lineage", *TABLES, *VIEWS, "published", "paper_vs_ours"]


def _fill(connection: duckdb.DuckDBPyConnection, store: Store, runs: list[RunRecord]) -> None:
    manifests = {artifact.path: manifest for artifact in store.artifacts() if (manifest := _manifest(artifact))}
    _table(connection, "runs", pa.Table.from_pylist([_run_row(run) for run in runs], schema=RUNS))
    stages = [row for run in runs for row in _stage_rows(store, run, manifests)]
    _table(connection, "stages", pa.Table.from_pylist(stages, schema=STAGES))
    _table(connection, "lineage", pa.Table.from_pylist(_lineage(manifests), schema=LINEAGE))
    _table(connection, "published", pyarrow.csv.read_csv(PUBLISHED))
    for name, (stage, pattern, columns) in TABLES.items():
        _over_files(connection, "TABLE", name, _files(manifests, stage, pattern), columns)
    for name, (stage, pattern, columns) in VIEWS.items():
        _over_files(connection, "VIEW", name, _files(manifests, stage, pattern), columns)
    connection.execute(PAPER_VS_OURS)


def _table(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    connection.register("incoming", rows)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
    connection.unregister("incoming")


def _over_files(connection: duckdb.DuckDBPyConnection, kind: str, name: str, files: list[Path], columns: str) -> None:
    """A relation over Parquet files, each row with the runs that used its artifact."""
    if not files:
        connection.execute(f"CREATE TABLE {name} ({EMPTY[name]})")
        return
    listed = ", ".join(_literal(path) for path in files)
    connection.execute(
        f"CREATE {kind} {name} AS SELECT {columns} "
        f"FROM read_parquet([{listed}], filename = 'file', union_by_name = true) f "
        "JOIN stages s ON s.path = parse_dirpath(f.file) JOIN runs r ON r.run = s.run"
    )


def _files(manifests: dict[Path, Manifest], stage: str, pattern: str) -> list[Path]:
    return [
        path / name
        for path, manifest in manifests.items()
        if stage in ("*", manifest.stage)
        for name in sorted(manifest.files)
        if Path(name).match(pattern) and (path / name).is_file()
    ]


def _run_row(run: RunRecord) -> dict[str, Any]:
    seconds = None
    if run.finished:
        seconds = (_time(run.finished) - _time(run.started)).total_seconds()
    return {
        "run": run.run_id,
        "name": run.name,
        "method": (run.parameters.get("method") or {}).get("kind"),
        "dataset": dataset_name(run.parameters.get("dataset") or {}),
        "seed": run.parameters.get("seed"),
        "state": run.status,
        "started": _time(run.started),
        "finished": _time(run.finished) if run.finished else None,
        "seconds": seconds,
        "error": run.error,
        "parameters": json.dumps(run.parameters, ensure_ascii=False),
    }


def dataset_name(dataset: dict[str, Any]) -> str:
    """What a data set is called in the results: its hub name, the folder of its files, or the package."""
    if dataset.get("source") == "hub":
        return str(dataset.get("name")).rstrip("/").rpartition("/")[2]
    path = dataset.get("path") or dataset.get("train")
    if dataset.get("source") == "files" and path:
        return Path(path).stem if dataset.get("path") else Path(path).absolute().parent.name
    return str(dataset.get("source"))


def _stage_rows(store: Store, run: RunRecord, manifests: dict[Path, Manifest]) -> Iterator[dict[str, Any]]:
    for position, stage in enumerate(run.stages):
        path = store.artifact(stage.stage, stage.key).path
        row = vars(stage) | {"run": run.run_id, "position": position, "path": str(path)}
        manifest = manifests.get(path)
        if manifest is not None:  # gc may have removed it
            row |= {
                "build_seconds": manifest.seconds,
                "tokens_per_second": manifest.stats.get("tokens_per_second"),
                "bytes": sum(file.bytes for file in manifest.files.values()),
                "built": _time(manifest.created),
                "stats": json.dumps(manifest.stats, ensure_ascii=False),
                "machine": json.dumps(manifest.machine, ensure_ascii=False),
            }
        yield row


def _lineage(manifests: dict[Path, Manifest]) -> list[dict[str, Any]]:
    stage_of = {manifest.key: manifest.stage for manifest in manifests.values()}
    return [
        {"stage": each.stage, "key": each.key, "input": name, "input_stage": stage_of.get(key), "input_key": key}
        for each in manifests.values()
        for name, key in each.key_record["inputs"].items()
    ]


def _manifest(artifact: Artifact) -> Manifest | None:
    try:
        return artifact.manifest()
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged: `distill verify` says so


def _is_stale(store: Store, path: Path) -> bool:
    """Whether a run's record, or the folder of them, is younger than the results."""
    if not path.exists():
        return True
    made, folder = path.stat().st_mtime_ns, store.root / "runs"
    return any(each.stat().st_mtime_ns > made for each in (folder, *folder.glob("*.json")))


@contextmanager
def _one_at_a_time(store: Store) -> Iterator[None]:
    with (store.root / ".locks" / DATABASE).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _literal(value: Path) -> str:
    """A path as an SQL string: DDL takes no parameters."""
    return "'" + str(value).replace("'", "''") + "'"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
