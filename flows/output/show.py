"""What the commands print: tables that fit a terminal, and plain aligned columns where there is none."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from flows.output import streams
from tasks import formatting
from tasks.formatting import DASH, plain, short

WIDEST = 100
seconds, size = formatting.duration, formatting.size  # as the commands call them


def width() -> int:
    """Columns to write to: the terminal's, 80 where there is none, at most 100."""
    return min(shutil.get_terminal_size((80, 24)).columns, WIDEST)


def program() -> str:
    """What to type to call this program again: `distill`, or its path where it is not on the PATH."""
    if shutil.which("distill") or Path(sys.argv[0]).name != "distill":
        return "distill"
    path = Path(sys.argv[0]).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print rows under headers; numbers to the right. On a terminal long cells wrap, elsewhere nothing is cut."""
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(headers))]
    cells = [[cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(headers, cells, numeric, title)
    else:
        _plain_table(headers, cells, numeric, title)


def cell(value: Any) -> str:
    """One value as a person reads it: four significant digits, yes and no, a dash for nothing."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return plain(short(value))
    return str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def answer(rows: Any, form: str) -> None:
    """Print an Arrow table as a table, or as CSV or JSON, in UTF-8. Columns of one name are numbered: a, a_1."""
    if form != "table":
        streams.write_utf8()
    names: list[str] = []
    for name in rows.column_names:
        numbered = (f"{name}_{k}" for k in count(1))
        names.append(next(each for each in chain([name], numbered) if each not in names))
    rows = rows.rename_columns(names)
    try:
        records = rows.to_pylist()
    except (OverflowError, ValueError) as error:
        raise ValueError(f"the answer holds a time that cannot be shown: {error}\nask for it as text: ::text") from None
    if form == "json":
        print(json.dumps(records, indent=1, ensure_ascii=False, default=str))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows.column_names)
        writer.writerows(row.values() for row in records)
    else:
        table(rows.column_names, [list(row.values()) for row in records])


def labelled(pairs: Iterable[tuple[str, str]]) -> None:
    """Print `label  text` lines, the text wrapped beside its label."""
    pairs = list(pairs)
    indent = max((len(label) for label, _ in pairs), default=0) + 2
    for label, text in pairs:
        lines = textwrap.wrap(" ".join(text.split()), max(20, width() - indent)) or ["–"]
        print(f"{label:<{indent}}{lines[0]}")
        for line in lines[1:]:
            print(" " * indent + line)


def heading(text: str) -> None:
    """A title with room above it."""
    print(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n{text}")


def _rich_table(headers: Sequence[str], cells: list[list[str]], numeric: list[bool], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for header, right in zip(headers, numeric, strict=True):
        grid.add_column(Text(header), justify="right" if right else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text(value) for value in row))
    Console(width=shutil.get_terminal_size((80, 24)).columns).print(grid)


def _plain_table(headers: Sequence[str], cells: list[list[str]], numeric: list[bool], title: str) -> None:
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    if title:
        print(title)
    for row in [list(headers), *cells]:
        aligned = [
            value.rjust(size) if right else value.ljust(size)
            for value, size, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(aligned).rstrip())


def counter(what: str) -> Callable[[int, int], None]:
    """A callback that shows progress on a terminal: `3/40 artifacts checked`, on a line that is erased at the end."""

    def tell(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{done}/{total} {what}" if done < total else "\r\033[K", end="", file=sys.stderr, flush=True)

    return tell
