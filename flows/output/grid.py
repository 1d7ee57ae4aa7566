"""A table of results as text: its cells, and notes on what is undefined in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import formatting
from tasks.formatting import DASH, fixed, plain
from tasks.systems import SYSTEMS


@dataclass(frozen=True)
class Grid:
    """Headers and rows of a table, as text."""

    headers: list[str]
    rows: list[list[str]]
    notes: list[str]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def in_order(rows: Sequence[dict[str, Any]], column: str) -> list[Any]:
    """The values of a column, each once, in the order in which they come."""
    return list(dict.fromkeys(row[column] for row in rows))


def system(name: str) -> str:
    """What a system is called where people read of it."""
    return SYSTEMS.get(name, name)


def interval(row: dict[str, Any] | None, digits: int, *, sign: bool = False) -> str:
    """`1.23 [0.45, 2.01]`, a dash where the row is not there or undefined."""
    if row is None or row["value"] is None:
        return DASH
    bounds = formatting.interval(row["low"], row["high"], digits, sign=sign)
    return plain(f"{fixed(row['value'], digits, sign=sign)} {bounds}".strip())


def difference(row: dict[str, Any] | None, digits: int, *, holds: bool | None = None) -> str:
    """`+1.23 [+0.45, +2.01]*`, starred where it `holds`: by default where the interval excludes 0."""
    text = interval(row, digits, sign=True)
    if row is None or row["low"] is None:
        return text
    if holds is None:
        holds = row["low"] > 0 or row["high"] < 0
    return f"{text}*" if holds else text


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
