"""Dialogues to (context, response) pairs, and the chitchat dialogues that a package brings.

A raw row is (dialogue, source, target, flaw): `flaw` is why it can never be a pair, null for all others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from data.reading.content import package_file
from data.visible import is_blank

RAW_SCHEMA = pa.schema([(name, pa.string()) for name in ("dialogue", "source", "target", "flaw")])
BATCH_ROWS = 10_000
ONE_TURN = "dialogue of one turn"
EMPTY_TURN = "empty turn in source"

Dialogue = tuple[str, list[str]]  # its name, its turns
RawRow = tuple[str, str, str, str | None]


def pairs_of_turns(dialogue: Dialogue, context_turns: int, turn_separator: str) -> Iterator[RawRow]:
    """Every turn after the first with the (up to) `context_turns` turns before it.

    A pair with an empty turn in its context is flawed, and so is a dialogue of one turn, which has no pair and comes
    back as one row: leaving an empty turn out would make one speaker answer themselves.
    """
    name, turns = dialogue
    if len(turns) < 2:
        yield name, turns[0] if turns else "", "", ONE_TURN
    for position in range(1, len(turns)):
        context = turns[max(0, position - context_turns) : position]
        flaw = EMPTY_TURN if any(is_blank(turn) for turn in context) else None
        yield name, turn_separator.join(context), turns[position], flaw


def raw_batches(rows: Iterable[RawRow]) -> Iterator[Any]:
    """Rows as Arrow batches of RAW_SCHEMA, BATCH_ROWS at a time."""
    columns: tuple[list[Any], ...] = ([], [], [], [])
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        if len(columns[0]) == BATCH_ROWS:
            yield pa.record_batch(list(columns), schema=RAW_SCHEMA)
            columns = ([], [], [], [])
    if columns[0]:
        yield pa.record_batch(list(columns), schema=RAW_SCHEMA)


def chitchat_dialogues() -> list[Dialogue]:
    """The dialogues of the package chitchat-dataset, in its order; messages of one turn are joined by a space.

    The package's code is not imported: its data file lies beside it.
    Source: BYU-PCCL Chit-Chat Challenge (MIT), {id: {messages: [[{text, timestamp, sender}, …] per turn]}}.
    Raises ValueError with the command that installs an absent package.
    """
    path = package_file("chitchat_dataset", "chitchat-dataset==0.9.0", "dataset.json")
    dialogues = json.loads(path.read_bytes())
    return [
        (name, [" ".join(message["text"] for message in turn) for turn in dialogue["messages"]])
        for name, dialogue in dialogues.items()
    ]
