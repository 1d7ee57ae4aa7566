"""results.duckdb: all runs of a store as SQL relations, rebuilt from run records, manifests and Parquet files.

Small relations are tables; the large ones are views over the artifacts' Parquet files, which never change. The file is
written beside and swapped in, so that a reader sees the old one or the new one, and nobody waits for a lock. It carries
a hash of what it was made from, as the comment on `runs`: a query that finds another store than that rebuilds it first.
"""

import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv

from tasks.relations import DAGGER_ROUNDS, EMPTY, LINEAGE, PAPER_VS_OURS, RUNS, STAGES, TABLES, VIEWS
from tasks.runs import RunRecord, read_runs
from tasks.store import Artifact, Manifest, Store, StoreError

DATABASE = "results.duckdb"
PUBLISHED = Path(__file__).resolve().parents[1] / "data" / "published_results.csv"
CODE = (Path(__file__), Path(__file__).with_name("relations.py"), PUBLISHED)


def build_catalog(store: Store) -> Path:
    """Rebuild results.duckdb and return its path. Two processes that end at once take turns.

    Raises StoreError in one line where DuckDB cannot write it, or cannot read an artifact.
    """
    target = store.root / DATABASE
    fresh = target.with_name(f".{DATABASE}.partial")  # one name: what a killed build has left is overwritten
    with _one_at_a_time(store):
        try:
            _remove(fresh)
            with duckdb.connect() as connection:
                connection.execute(f"ATTACH {_literal(fresh)} AS results (STORAGE_VERSION 'v1.2.0')")
                connection.execute("USE results")
                runs = read_runs(store)
                state = _state(store, runs)  # before it is read: what changes meanwhile makes the results stale
                _fill(connection, store, runs)
                connection.execute(f"COMMENT ON TABLE runs IS '{state}'")
                connection.execute("USE memory")
                connection.execute("DETACH results")
            _wal(target).unlink(missing_ok=True)
            fresh.replace(target)
        except duckdb.Error as error:
            message = f"{DATABASE} could not be built: {_first_line(error)}"
            raise StoreError(f"{message}\n`distill verify` names damaged artifacts") from None
        finally:
            _remove(fresh)
    return target


def query(store: Store, sql: str) -> pa.Table:
    """The answer to a query, read-only. What has happened to runs and artifacts since the last build is taken in first.

    Raises ValueError in one line for a query that DuckDB refuses.
    """
    with questions(store) as ask:
        return ask(sql)


@contextmanager
def questions(store: Store) -> Iterator[Callable[[str], pa.Table]]:
    """Many queries of the results as they are now, whatever happens meanwhile. Each raises what `query` does."""
    path = store.root / DATABASE
    if _recorded_state(path) != _state(store, read_runs(store)):
        build_catalog(store)
    with _reading(path) as connection:

        def ask(sql: str) -> pa.Table:
            try:
                answer = connection.sql(sql)
                return pa.table({}) if answer is None else answer.to_arrow_table()  # None: a statement, not a question
            except duckdb.Error as error:
                raise ValueError(f"{_first_line(error)}\nthe relations are: {', '.join(relations())}") from None

        yield ask


def relations() -> list[str]:
    """What can be asked."""
    return ["runs", "stages", "lineage", *TABLES, *VIEWS, "published", "paper_vs_ours", "dagger_rounds"]


def _fill(connection: duckdb.DuckDBPyConnection, store: Store, runs: list[RunRecord]) -> None:
    manifests = {artifact.path: manifest for artifact in store.artifacts() if (manifest := _manifest(store, artifact))}
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
    connection.execute(DAGGER_ROUNDS)


def _table(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    connection.register("incoming", rows)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
    connection.unregister("incoming")


def _over_files(connection: duckdb.DuckDBPyConnection, kind: str, name: str, files: list[Path], columns: str) -> None:
    """A relation over Parquet files, each row with the runs that used its artifact.

    Artifacts outlive the code that wrote them: a column that no file has yet is NULL.
    """
    if not files:
        connection.execute(f"CREATE TABLE {name} ({EMPTY[name]})")
        return
    listed = ", ".join(_literal(path) for path in files)
    read = f"read_parquet([{listed}], filename = 'file', union_by_name = true)"
    wanted = dict.fromkeys(re.findall(r'\bf\."?(\w+)', columns))
    absent = "".join(f", NULL AS {each}" for each in wanted if each not in connection.sql(f"FROM {read}").columns)
    connection.execute(
        f"CREATE {kind} {name} AS SELECT {columns} FROM (SELECT *{absent} FROM {read}) f "
        # a run may take the same artifact twice: what several cells of a comparison share belongs to none of them
        "JOIN (SELECT run, stage, key, path, min(label) AS label, if(count(DISTINCT cell) = 1, min(cell), '') AS cell "
        "FROM stages GROUP BY run, stage, key, path) s ON s.path = parse_dirpath(f.file) "
        "JOIN runs r ON r.run = s.run"
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
    seconds, dataset = None, run.dataset or run.parameters.get("dataset")
    if run.finished:
        seconds = (_time(run.finished) - _time(run.started)).total_seconds()
    return {
        "run": run.run_id,
        "name": run.name,
        "method": (run.parameters.get("method") or {}).get("kind"),
        "dataset": dataset_name(dataset) if dataset else None,
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
    if dataset.get("source") in ("files", "file") and path:
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
                "versions": json.dumps(manifest.versions, ensure_ascii=False),
            }
        yield row


def _lineage(manifests: dict[Path, Manifest]) -> list[dict[str, Any]]:
    stage_of = {manifest.key: manifest.stage for manifest in manifests.values()}
    return [
        {"stage": each.stage, "key": each.key, "input": name, "input_stage": stage_of.get(key), "input_key": key}
        for each in manifests.values()
        for name, key in each.key_record["inputs"].items()
    ]


def _manifest(store: Store, artifact: Artifact) -> Manifest | None:
    """None for an artifact that is damaged, which `distill verify` names, or that has just been deleted."""
    try:
        return None if store.damage(artifact) else artifact.manifest()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _state(store: Store, runs: list[RunRecord]) -> str:
    """A hash of what the results are made from: every run as it stands now, the artifacts there are, this code.

    A crash changes no file and a deleted artifact no record, so their times do not tell.
    """
    of_runs = [asdict(run) | {"status": run.status} for run in runs]
    artifacts = [(str(artifact.path), _changed(artifact.path)) for artifact in store.artifacts()]
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in CODE]
    return hashlib.sha256(json.dumps([of_runs, artifacts, code]).encode()).hexdigest()


def _changed(path: Path) -> int | None:
    """When a directory last gained or lost a file, in ns; None if it has just gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _recorded_state(path: Path) -> str | None:
    """The state that the results were made from; None where they are missing, broken or held by somebody's lock."""
    try:
        with _reading(path) as connection:
            found = connection.execute(
                "SELECT comment FROM duckdb_tables() WHERE database_name = 'results' AND table_name = 'runs'"
            ).fetchone()
    except duckdb.Error:
        return None
    return found[0] if found else None


@contextmanager
def _reading(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection.

    Attached, not opened: a file that this process has opened before would be shared, even if it has been swapped since.
    """
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH {_literal(path)} AS results (READ_ONLY)")
        connection.execute("USE results")
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


@contextmanager
def _one_at_a_time(store: Store) -> Iterator[None]:
    with (store.root / ".locks" / DATABASE).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove(database: Path) -> None:
    database.unlink(missing_ok=True)
    _wal(database).unlink(missing_ok=True)


def _wal(database: Path) -> Path:
    return database.with_name(f"{database.name}.wal")


def _literal(value: Path) -> str:
    """A path as an SQL string: DDL takes no parameters."""
    return "'" + str(value).replace("'", "''") + "'"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
