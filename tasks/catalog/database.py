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
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv

from tasks.catalog.relations import (
    DAGGER_ROUNDS,
    LEFT_OUT,
    LINEAGE,
    PAPER_VS_OURS,
    RUNS,
    STAGES,
    TABLES,
    VIEWS,
    defined,
    selected,
)
from tasks.catalog.rows import lineage_rows, run_row, stage_rows
from tasks.catalog.sql_errors import explain, single
from tasks.messages import first_line
from tasks.store.artifacts import MANIFEST, Artifact, Manifest, Store, StoreError
from tasks.store.files import file_hash, read_json, stamp, write_json
from tasks.store.runs import RunRecord, scan_runs

DATABASE = "results.duckdb"
PUBLISHED = Path(__file__).resolve().parents[2] / "data" / "published_results.csv"
CODE = (*(Path(__file__).with_name(name) for name in ("database.py", "rows.py", "relations.py")), PUBLISHED)


def build_catalog(store: Store, *, ending: RunRecord | None = None) -> Path:
    """Rebuild results.duckdb and return its path. Two processes that end at once take turns.

    `ending` is a run as it will be recorded once its results are there. What is damaged is left out, and named in the
    relation `left_out`. Raises StoreError in one line where DuckDB cannot write the file.
    """
    target = store.root / DATABASE
    fresh = target.with_name(f".{DATABASE}.partial")  # one name: what a killed build has left is overwritten
    with _one_at_a_time(store):
        try:
            _remove(fresh)
            with duckdb.connect() as connection:
                connection.execute(f"ATTACH {_literal(fresh)} AS results (STORAGE_VERSION 'v1.2.0')")
                connection.execute("USE results")
                runs, unreadable = _runs(store, ending)
                state = _state(store, runs, unreadable)  # before it is read: what changes meanwhile makes it stale
                _fill(connection, store, runs, [{"what": each, "stage": None, "key": None} for each in unreadable])
                connection.execute(f"COMMENT ON TABLE runs IS '{state}'")
                connection.execute("USE memory")
                connection.execute("DETACH results")
            _wal(target).unlink(missing_ok=True)
            fresh.replace(target)
            write_json(_memo(store), {"sha256_of_file": file_hash(target), "stamp": stamp(target)})
        except duckdb.Error as error:
            message = f"{DATABASE} could not be built: {first_line(error)}"
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


def left_out(ask: Callable[[str], pa.Table]) -> list[str]:
    """What the results lack because it is damaged or cannot be read, a line each."""
    return [str(what) for what in ask("SELECT what FROM left_out").column("what").to_pylist()]


@contextmanager
def questions(store: Store, *, ending: RunRecord | None = None) -> Iterator[Callable[[str], pa.Table]]:
    """Many queries of the results as they are now, whatever happens meanwhile. Each raises what `query` does."""
    path = store.root / DATABASE
    if not _is_as_written(store) or _recorded_state(path) != _state(store, *_runs(store, ending)):
        build_catalog(store, ending=ending)
    with _reading(path) as connection:

        def ask(sql: str) -> pa.Table:
            try:
                answer = connection.sql(single(sql))
                return pa.table({}) if answer is None else answer.to_arrow_table()  # None: a statement, not a question
            except duckdb.Error as error:
                raise ValueError(explain(connection, sql, error, relations())) from None

        yield ask


def relations() -> list[str]:
    """The names of all relations, as they are listed to a user."""
    return ["runs", "stages", "lineage", *TABLES, *VIEWS, "published", "paper_vs_ours", "dagger_rounds", "left_out"]


def _fill(
    connection: duckdb.DuckDBPyConnection, store: Store, runs: list[RunRecord], missing: list[dict[str, str | None]]
) -> None:
    manifests = _manifests(store, missing)
    _table(connection, "runs", pa.Table.from_pylist([run_row(run) for run in runs], schema=RUNS))
    stages = [row for run in runs for row in stage_rows(store, run, manifests)]
    _table(connection, "stages", pa.Table.from_pylist(stages, schema=STAGES))
    _table(connection, "lineage", pa.Table.from_pylist(lineage_rows(manifests), schema=LINEAGE))
    _table(connection, "published", pyarrow.csv.read_csv(PUBLISHED))
    for kind, relations_ in (("TABLE", TABLES), ("VIEW", VIEWS)):
        for name, (stage, pattern, columns) in relations_.items():
            files = _readable(connection, _files(manifests, stage, pattern), missing)
            _over_files(connection, kind, name, files, columns)
    connection.execute(PAPER_VS_OURS)
    connection.execute(DAGGER_ROUNDS)
    _table(connection, "left_out", pa.Table.from_pylist(missing, schema=LEFT_OUT))


def _readable(
    connection: duckdb.DuckDBPyConnection, files: list[Path], missing: list[dict[str, str | None]]
) -> list[Path]:
    """The files that DuckDB can read. One that it cannot is left out, and named, and the others are still asked."""
    try:
        if files:
            listed = ", ".join(_literal(_as_pattern(path)) for path in files)
            connection.execute(f"SELECT 1 FROM read_parquet([{listed}], union_by_name = true) LIMIT 0")
        return files
    except duckdb.Error as error:
        if len(files) == 1:
            place = {"stage": files[0].parts[-3], "key": files[0].parts[-2]}
            missing.append({"what": f"{files[0]} cannot be read: {first_line(error)}", **place})
            return []
        half = len(files) // 2
        parts = [_readable(connection, part, missing) for part in (files[:half], files[half:])]
        return [path for part in parts for path in part]


def _table(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    connection.register("incoming", rows)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
    connection.unregister("incoming")


def _over_files(connection: duckdb.DuckDBPyConnection, kind: str, name: str, files: list[Path], columns: str) -> None:
    """A relation over Parquet files, each row with the runs that used its artifact; a table in the order of these.

    Artifacts outlive the code that wrote them: a column that no file has yet is NULL.
    """
    if not files:
        connection.execute(f"CREATE TABLE {name} ({defined(columns)})")
        return
    listed = ", ".join(_literal(_as_pattern(path)) for path in files)
    read = f"read_parquet([{listed}], filename = 'file', file_row_number = true, union_by_name = true)"
    order = " ORDER BY r.started, r.run, s.position, f.file_row_number" if kind == "TABLE" else ""
    wanted = dict.fromkeys(re.findall(r'\bf\."?(\w+)', columns))
    absent = "".join(f", NULL AS {each}" for each in wanted if each not in connection.sql(f"FROM {read}").columns)
    connection.execute(
        f"CREATE {kind} {name} AS SELECT {selected(columns)} FROM (SELECT *{absent} FROM {read}) f "
        # a run may take the same artifact twice: what several cells of a comparison share belongs to none of them
        "JOIN (SELECT run, stage, key, path, min(label) AS label, if(count(DISTINCT cell) = 1, min(cell), '') AS cell, "
        "min(position) AS position FROM stages GROUP BY run, stage, key, path) s ON s.path = parse_dirpath(f.file) "
        f"JOIN runs r ON r.run = s.run{order}"
    )


def _files(manifests: dict[Path, Manifest], stage: str, pattern: str) -> list[Path]:
    return [
        path / name
        for path, manifest in manifests.items()
        if stage in ("*", manifest.stage)
        for name in sorted(manifest.files)
        if Path(name).match(pattern) and (path / name).is_file()
    ]


def _manifests(store: Store, missing: list[dict[str, str | None]]) -> dict[Path, Manifest]:
    """Directory -> manifest, of every artifact whose files are as they were made. Others are added to `missing`."""
    found = {}
    for artifact in store.artifacts():
        try:
            damage = store.damage(artifact, of=_is_asked)
            if damage is None:
                found[artifact.path] = artifact.manifest()
                continue
        except FileNotFoundError:  # it has just been deleted
            continue
        except OSError as error:
            damage = f"it cannot be read: {error.strerror}"
        what = f"{artifact.stage} {artifact.key[:8]} is left out: {damage}; a run that needs it builds it anew"
        missing.append({"what": what, "stage": artifact.stage, "key": artifact.key})
    return found


def _runs(store: Store, ending: RunRecord | None) -> tuple[list[RunRecord], list[str]]:
    """All run records, `ending` in place of its own, and a line for each file that cannot be read."""
    records, unreadable = scan_runs(store)
    if ending is not None:
        records = [ending if each.run_id == ending.run_id else each for each in records]
    return records, unreadable


def _state(store: Store, runs: list[RunRecord], unreadable: list[str]) -> str:
    """A hash of what the results are made from: every run as it stands now, the artifacts there are, this code.

    Times would not do: a run that crashes changes no file, and an artifact that is deleted no record.
    """
    of_runs = [run.as_recorded() | {"status": run.status} for run in runs]
    artifacts = [(str(artifact.path), _changed(artifact)) for artifact in store.artifacts()]
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in CODE]
    return hashlib.sha256(json.dumps([of_runs, unreadable, artifacts, code]).encode()).hexdigest()


def _changed(artifact: Artifact) -> list[list[int]]:
    """Stamps of an artifact's directory, manifest and Parquet files: they change when any of these is written to."""
    try:
        asked = [path for path in sorted(artifact.path.iterdir()) if _is_asked(path.name) or path.name == MANIFEST]
        return [stamp(path) for path in (artifact.path, *asked)]
    except OSError as error:  # it has just gone, or may not be looked at
        return [[error.errno or 0]]


def _is_asked(name: str) -> bool:
    """Whether SQL reads this file. Models and features are never asked for, and take long to hash."""
    return name.endswith(".parquet")


def _is_as_written(store: Store) -> bool:
    """Whether results.duckdb holds what was put there. It is read again only if it has been touched since."""
    path = store.root / DATABASE
    try:
        memo = read_json(_memo(store))
        return bool(memo["stamp"] == stamp(path) or memo["sha256_of_file"] == file_hash(path))
    except (OSError, ValueError, KeyError):
        return False


def _memo(store: Store) -> Path:
    return store.root / ".checked" / f"{DATABASE}.json"


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
    with (store.root / ".locks" / DATABASE).open("a", encoding="utf-8") as file:
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


def _as_pattern(path: Path) -> Path:
    """A path escaped for DuckDB, which reads patterns: the folder `a[1]` would mean `a1`."""
    return Path(re.sub(r"([*?\[])", r"[\1]", str(path)))
