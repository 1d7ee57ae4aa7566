"""Markdown that shows text from outside and never interprets it."""

import re
from collections.abc import Iterable, Sequence


def escape(value: object) -> str:
    """Text as Markdown shows it, in one line: no markup, no HTML, no new cell of a table."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#!|~$@])", r"\\\1", text)


def fenced(text: str, language: str = "") -> str:
    """A code block that no run of backticks inside it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
