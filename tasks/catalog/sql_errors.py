"""What DuckDB says of a query, as a person reads it: a column that is not there, with the nearest that is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import duckdb

from tasks.messages import first_line

_MISSING = re.compile(r'(?:Referenced column|Table "[^"]*" does not have a column named|Column) "((?:[^"]|"")+)"')
_MISSING_TABLE = re.compile(r"Table with name (.+?) does not exist")


def single(sql: str) -> str:
    """A query that is one; of several, DuckDB would answer the last alone. Raises ValueError, or what DuckDB does."""
    count = len(duckdb.extract_statements(sql))
    if count > 1:
        raise ValueError(
            f"one query at a time, got {count}\nleave out all but one, or join them with UNION ALL or WITH"
        )
    return sql


def explain(connection: duckdb.DuckDBPyConnection, sql: str, error: Exception, relations: Sequence[str]) -> str:
    """An error of DuckDB in two lines: what is wrong, and what there is in its place.

    A missing column is named with the relations of the query that lack it and with their columns, the nearest one first
    in a question. `relations`: all that can be asked.
    """
    said = first_line(error)
    columns = _columns(connection, sql, relations)
    column, table = _MISSING.search(said), _MISSING_TABLE.search(said)
    if isinstance(error, duckdb.BinderException) and column and columns:
        known = [each for found in columns.values() for each in found]
        if column[1] not in known:  # else it is lost on the way, in a part of the query that leaves it out
            said = f"there is no column {column[1]} in {' or '.join(columns)}{_nearest(column[1], known)}"
        lists = "; ".join(f"{name} has: {', '.join(found)}" for name, found in columns.items())
        return f"{said}\n{lists}"
    if table:
        said = said.rstrip("!") + _nearest(table[1], relations)
    return f"{said}\nthe relations are: {', '.join(relations)}"


def _columns(connection: duckdb.DuckDBPyConnection, sql: str, relations: Sequence[str]) -> dict[str, list[str]]:
    """The columns of the relations that a query names, outside of its texts; no file is opened for a view."""
    words = set(re.findall(r"\w+", re.sub(r"'[^']*'", " ", sql).lower()))
    listed = "SELECT column_name FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index"
    found = {name: connection.execute(listed, [name]).fetchall() for name in relations if name in words}
    return {name: [row[0] for row in rows] for name, rows in found.items() if rows}


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
