"""Dialogues to pairs."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.reading import content, dialogues
from data.reading.dialogues import EMPTY_TURN, ONE_TURN, RAW_SCHEMA, RawRow, pairs_of_turns, raw_batches


def test_consecutive_turns_make_pairs() -> None:
    assert list(pairs_of_turns(("d", ["hi", "hello", "bye"]), 1, " ")) == [
        ("d", "hi", "hello", None),
        ("d", "hello", "bye", None),
    ]


def test_two_turns_of_context_where_there_are_two() -> None:
    assert list(pairs_of_turns(("d", ["a", "b", "c", "e"]), 2, " / ")) == [
        ("d", "a", "b", None),
        ("d", "a / b", "c", None),
        ("d", "b / c", "e", None),
    ]


def test_an_empty_turn_does_not_make_a_speaker_answer_themselves() -> None:
    # X: hi, hm?, ok; Y: only white space. Without Y's turn, X would answer X
    turns = ["hi", " \t", "hm?", "yes", "ok"]
    assert list(pairs_of_turns(("d", turns), 1, " ")) == [
        ("d", "hi", " \t", None),  # for cleaning to drop: its target is empty
        ("d", " \t", "hm?", EMPTY_TURN),
        ("d", "hm?", "yes", None),
        ("d", "yes", "ok", None),
    ]
    flaws = [flaw for *_, flaw in pairs_of_turns(("d", turns), 2, " ")]
    assert flaws == [None, EMPTY_TURN, EMPTY_TURN, None]


@pytest.mark.parametrize(("turns", "source"), [(["alone"], "alone"), ([], "")])
def test_a_dialogue_without_a_pair_is_one_flawed_row(turns: list[str], source: str) -> None:
    assert list(pairs_of_turns(("d", turns), 1, " ")) == [("d", source, "", ONE_TURN)]


@given(st.lists(st.text(alphabet="ab \n", max_size=3), max_size=8), st.integers(1, 5))
def test_every_turn_after_the_first_is_a_target_once(turns: list[str], context_turns: int) -> None:
    slow = []
    for i in range(1, len(turns)):
        context = [turns[j] for j in range(len(turns)) if i - context_turns <= j < i]
        blank = [turn for turn in context if turn == "" or turn.isspace()]
        slow.append(("d", "|".join(context), turns[i], EMPTY_TURN if blank else None))
    rows = [row for row in pairs_of_turns(("d", turns), context_turns, "|") if row[3] != ONE_TURN]
    assert rows == slow


def test_batches_hold_every_row_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogues, "BATCH_ROWS", 3)
    rows: Iterable[RawRow] = [(f"d{i}", f"s{i}", f"t{i}", None if i else ONE_TURN) for i in range(7)]
    batches = list(raw_batches(rows))
    assert [batch.num_rows for batch in batches] == [3, 3, 1]
    assert all(batch.schema == RAW_SCHEMA for batch in batches)
    assert [tuple(row.values()) for batch in batches for row in batch.to_pylist()] == rows


def test_chitchat_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed\npip install chitchat-dataset==0.9.0"):
        dialogues.chitchat_dialogues()
