"""Standard output and error that can take everything that is printed: no run ends for what it says.

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
    """Make the standard streams take any text: what their encoding lacks is shown by what looks like it, or escaped.

    A stream that was closed before we began (`>&-`) leads nowhere: the next file that is opened must not become it.
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
    """What is printed from now on is for programs: UTF-8 in every locale, so that nothing is replaced."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def let_go() -> None:
    """The reader of our output has gone. Python would complain again when it flushes at exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
            continue
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def outlive_readers() -> None:
    """A run goes on when the reader of its output has gone, where rich, which Prefect logs with, would end it."""
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
