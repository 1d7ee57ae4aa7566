"""A table of results as text: its cells, and notes on what is undefined in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def decimals(values: Sequence[float | None]) -> int:
    """Decimals that show about three digits of the largest value of a row."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 3 if largest < 1 else 2 if largest < 100 else 1


def interval(row: dict[str, Any] | None, digits: int) -> str:
    """`1.23 [0.45, 2.01]`, without the interval where there is none; a dash where there is no value."""
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
