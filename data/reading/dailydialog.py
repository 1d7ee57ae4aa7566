"""The raw DailyDialog corpus: a directory with its official files, a dialogue a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.reading.corpora import dailydialog_files
from data.reading.dialogues import Dialogue
from data.reading.named_files import read_text
from data.visible import is_blank, without_marks

END_OF_TURN = "__eou__"


def read_dailydialog(directory: str | Path) -> dict[str, list[Dialogue]]:
    """Split -> its dialogues, named by split and line, in the order of the file.

    Raises FileNotFoundError as `dailydialog_files`; ValueError with file and line for what is no dialogue.
    """
    return {split: list(_dialogues(split, path)) for split, path in dailydialog_files(directory).items()}


def turns_of_line(line: str) -> list[str]:
    """The turns of a dialogue: each ends in `__eou__`; what follows the last one is a turn only if not blank."""
    turns = [turn.strip() for turn in line.split(END_OF_TURN)]
    return turns[:-1] if is_blank(turns[-1]) else turns


def _dialogues(split: str, path: Path) -> Iterator[Dialogue]:
    for number, line in enumerate(without_marks(read_text(path)).split("\n"), start=1):
        if is_blank(line):
            continue
        if END_OF_TURN not in line:
            raise ValueError(
                f"{path}:{number}: no {END_OF_TURN} in this line\ngive DailyDialog's own files, a dialogue a line"
            )
        yield f"{split}:{number}", turns_of_line(line)
