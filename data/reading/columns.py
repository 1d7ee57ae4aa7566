"""From a record's named columns to raw rows, with the checks that every format shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data.reading.dialogues import RawRow, pairs_of_turns
from data.reading.specs import DatasetSettings

# string_view is what Polars writes; a null column has no text in it
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
_LISTS = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view),
    pa.types.is_fixed_size_list,
)
_WRITE_TEXT = "write its values as text, or name another column"
_WRITE_LISTS = "write each dialogue as a list of its turns, or name another column"


@dataclass(frozen=True)
class Columns:
    """Which columns of a record make its pairs.

    Either `source` and `target` (and perhaps `dialogue`, equal for the pairs of one dialogue), or `turns`, a list of
    strings. A record without a dialogue column is a dialogue by itself, named by its number.
    """

    source: str
    target: str
    dialogue: str | None
    turns: str | None
    context_turns: int
    turn_separator: str

    @classmethod
    def of(cls, settings: DatasetSettings) -> Columns:
        return cls(
            source=settings.source_column,
            target=settings.target_column,
            dialogue=settings.dialogue_column,
            turns=settings.turns_column,
            context_turns=settings.context_turns,
            turn_separator=settings.turn_separator,
        )

    def names(self) -> list[str]:
        """The columns to read, in the order that `rows` takes their values."""
        if self.turns is not None:
            return [self.turns]
        return [self.source, self.target, *([] if self.dialogue is None else [self.dialogue])]

    def check_present(self, available: Sequence[str], where: str) -> None:
        """Raises ValueError that names the columns that are missing and those that there are."""
        missing = [name for name in self.names() if name not in available]
        if missing:
            raise ValueError(
                f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, available))}\n"
                "name its columns with source_column and target_column (or turns_column)"
            )
        for name in self.names():
            if available.count(name) > 1:
                raise ValueError(
                    f"{where} has {available.count(name)} columns named {name!r}\nrename all but the one that is meant"
                )

    def check_types(self, schema: Any, where: str) -> None:
        """Raises ValueError if a column of an Arrow schema holds neither text (turns: lists of text) nor nothing."""
        for name in self.names():
            kind = _value_type(schema.field(name).type)
            if name == self.turns:
                if not any(is_kind(kind) for is_kind in _LISTS):
                    raise ValueError(f"column {name!r} of {where} holds {kind}, not lists of text\n{_WRITE_LISTS}")
                kind = _value_type(kind.value_type)
            elif name == self.dialogue and pa.types.is_integer(kind):
                continue
            if not any(is_kind(kind) for is_kind in _TEXTS):
                raise ValueError(f"column {name!r} of {where} holds {kind}, not text\n{_WRITE_TEXT}")

    def rows(self, values: Sequence[Any], number: int, where: str) -> Iterator[RawRow]:
        """The raw rows of one record: its pair, or those of its turns. A null text is an empty one.

        values: in the order of `names`. number: of the record in its source, from 1. where: the file or data set.
        Raises ValueError with place and column for a value that is no text.
        """
        if self.turns is not None:
            turns = values[0] if values[0] is not None else []
            if not isinstance(turns, list):
                raise ValueError(
                    f"{where}:{number}: column {self.turns!r} holds {type(turns).__name__}, not a list of text\n"
                    f"{_WRITE_LISTS}"
                )
            texts = [_text(turn, self.turns, number, where) for turn in turns]
            yield from pairs_of_turns((str(number), texts), self.context_turns, self.turn_separator)
            return
        dialogue = str(number)
        if self.dialogue is not None:
            if not isinstance(values[2], str | int):
                kind = type(values[2]).__name__
                raise ValueError(
                    f"{where}:{number}: column {self.dialogue!r} holds {kind}, not a dialogue's name\n"
                    "give each row its dialogue, a text or a whole number, or leave dialogue_column out"
                )
            dialogue = str(values[2])
        yield (
            dialogue,
            _text(values[0], self.source, number, where),
            _text(values[1], self.target, number, where),
            None,
        )


def rows_of_arrow(columns: Columns, batches: Iterable[Any], where: str) -> Iterator[RawRow]:
    """The raw rows of Arrow tables or record batches with the columns `columns.names()`, in that order."""
    number = 0
    for batch in batches:
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            number += 1
            yield from columns.rows(values, number, where)


def _value_type(kind: Any) -> Any:
    """What a column holds: of a dictionary (of a dictionary …), its values."""
    return _value_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _text(value: Any, column: str, number: int, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}:{number}: column {column!r} holds {type(value).__name__}, not text\n{_WRITE_TEXT}")
    return value
