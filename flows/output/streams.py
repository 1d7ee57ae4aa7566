"""Makes standard output and error take any text, so that no run fails because of what it prints.

Imports nothing heavy: it is the first thing that the command line does.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress

ERRORS = "distill.readable"
LOOK_ALIKES = {
    "–": "-", "—": "-", "−": "-", "·": "*", "•": "*", "…": "...", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'",
    "→": "->", "←": "<-", "↑": "^", "↓": "v", "≥": ">=", "≤": "<=", "≈": "~", "±": "+/-", "×": "x", "★": "*",
    "━": "-", "─": "-", "╸": "-", "╺": "-", "│": "|", "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip


def secure() -> None:
    """Make the standard streams take any text: what their encoding lacks is replaced by a similar character or escaped.

    A stream that was closed at start (`>&-`) leads to the null device; else the next file opened would get its number.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (for good)
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    codecs.register_error(ERRORS, _readable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def write_utf8() -> None:
    """Write UTF-8 in every locale from now on: this output is for programs, and nothing in it may be replaced."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def let_go() -> None:
    """Drop buffered output after its reader has gone; else Python complains when it flushes at exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
            continue
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def outlive_readers() -> None:
    """Let a run go on when the reader of its output has gone; rich, through which Prefect logs, would end it."""
    from rich.console import Console

    def fall_silent(console: Console) -> None:
        console.quiet = True

    Console.on_broken_pipe = fall_silent  # type: ignore[method-assign, assignment]


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(LOOK_ALIKES.get(c) or _escaped(c) for c in error.object[error.start : error.end]), error.end


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")
