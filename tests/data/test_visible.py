"""What cannot be seen is no text, in every reader: byte order marks go, and nothing invisible fills or tells apart."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.cleaning.pairs import Rules, clean, pair_key, token_counts, tokens
from data.reading.dailydialog import read_dailydialog
from data.reading.dialogues import EMPTY_TURN, RawRow, pairs_of_turns, raw_batches
from data.reading.packages.pronunciations import parse_dictionary
from data.reading.specs import DatasetSettings
from data.reading.subtitles import clean_sentence, read_movie
from data.reading.texts import TextSettings, load_texts
from data.sources import load
from data.visible import comparable, is_blank, without_marks

MARK, JOINER, NON_JOINER = "\ufeff", "\u200d", "\u200c"
NEVER_SEEN = ["\u00ad", "\u034f", "\u200b", "\u200e", "\u200f", "\u202a", "\u2060", "\u2063", MARK]
SEEN_IN_OTHERS = [JOINER, NON_JOINER, "\ufe0f", "\u180b", "\U000e0067", "\U000e0100", "\u3164"]


@pytest.mark.parametrize("text", ["", " \t\n", "\u00a0", "\u3000\u200b", *NEVER_SEEN, *SEEN_IN_OTHERS, "\u200b \u00a0"])
def test_what_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", ".", "\u200ba", "\u0301", "\x00", "\u0645\u06cc\u200c", "\U0001f600"])
def test_what_shows_something_is_not(text: str) -> None:
    assert not is_blank(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        *[(f"co{mark}operate", "cooperate") for mark in NEVER_SEEN],
        ("cafe\u0301", "caf\u00e9"),
        ("\u212b", "\u00c5"),  # the Angstrom sign is the letter
    ],
)
def test_texts_that_look_the_same_are(text: str, same: str) -> None:
    assert comparable(text) == comparable(same)
    assert pair_key(text, "x") == pair_key(same, "x")
    assert pair_key("x", text) == pair_key("x", same)
    assert token_counts([text]) == token_counts([same])


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"),  # Persian
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u0937"),  # Devanagari, half a letter
        ("\U0001f469\u200d\U0001f680", "\U0001f469\U0001f680"),  # an astronaut, a woman and a rocket
        ("\u2764\ufe0f", "\u2764"),
        ("\ufb01", "fi"),  # NFC, not NFKC: a ligature is another letter
    ],
)
def test_texts_that_look_different_are_different_and_kept_as_they_are(text: str, other: str) -> None:
    assert pair_key(text, "x") != pair_key(other, "x")
    assert Rules().normalise(text) == text
    assert without_marks(text) == text


@given(st.text(alphabet=st.characters(max_codepoint=0xAC, exclude_categories=["Cs"]), max_size=20))
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert comparable(text) == text == without_marks(text)
    assert is_blank(text) == (not text.split())
    assert list(token_counts([text])) == list(dict.fromkeys(tokens(text)))


@given(st.text(max_size=20))
def test_comparing_twice_is_comparing_once(text: str) -> None:
    once = comparable(text)
    assert comparable(once) == once
    assert unicodedata.is_normalized("NFC", once)


def test_cleaning_drops_blank_texts_and_pairs_that_look_the_same() -> None:
    rows = [
        ("Caf\u00e9 au lait", "oui"),
        ("Cafe\u0301\u00a0au\u200b lait", "o\u00adui"),
        ("\u200b\u00a0", "a"),
        ("b", f"{JOINER}{MARK}"),
        (f"{MARK}first", "kept"),
        ("soft\u00adhyphen", f"{NON_JOINER}c"),
    ]
    raw: list[RawRow] = [("d", *row, None) for row in rows]
    cleaned = clean("train", raw_batches(raw), Rules(), {})
    assert cleaned.dropped["reason"].to_pylist() == ["duplicate", "empty source", "empty target"]
    assert [tuple(row.values())[1:] for row in cleaned.kept.to_pylist()] == [
        ("Caf\u00e9 au lait", "oui"),
        ("first", "kept"),
        ("soft\u00adhyphen", f"{NON_JOINER}c"),  # what is kept keeps all but the marks
    ]


def test_a_turn_that_shows_nothing_is_empty() -> None:
    rows = list(pairs_of_turns(("d", ["hi", f"\u200b{JOINER}", "hm?"]), 1, " "))
    assert [flaw for *_, flaw in rows] == [None, EMPTY_TURN]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_mark_in_a_file_of_pairs_becomes_no_text(tmp_path: Path, suffix: str) -> None:
    rows = [{"source": f"{MARK}say {i}", "target": f"so{MARK}, {i}"} for i in range(30)]
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text(f"{MARK}{lines[0]}\n{MARK}{lines[1]}\n{MARK}\n" + "\n".join(lines[2:]), encoding="utf-8")
    else:
        lines = [f'{MARK}"{row["source"]}","{row["target"]}"' for row in rows]
        path.write_text("\n".join([f'{MARK}"source","target"', *lines]), encoding="utf-8")
    corpus = load(DatasetSettings(source="files", path=str(path), validation_share=0.1, test_share=0.1))
    texts = {(row["source"], row["target"]) for table in corpus.splits().values() for row in table.to_pylist()}
    assert texts == {(f"say {i}", f"so, {i}") for i in range(30)}


def test_a_mark_in_running_text_becomes_no_text(tmp_path: Path) -> None:
    novel = f"{MARK}CHAPTER I\r\n\r\nIt was\u00ad so.\r\n"
    (tmp_path / "two.txt").write_bytes((novel + novel + "\u200b\n").encode())
    found = load_texts(TextSettings(source="file", path=str(tmp_path / "two.txt")))
    assert found.transfer == ["CHAPTER I\nIt was\u00ad so.\nCHAPTER I\nIt was\u00ad so."]
    (tmp_path / "none.txt").write_bytes(f"{MARK}\n\u200b \u00a0\n".encode())
    with pytest.raises(ValueError, match=r"none\.txt has no text in it"):
        load_texts(TextSettings(source="file", path=str(tmp_path / "none.txt")))


def test_a_mark_in_dailydialog_becomes_no_turn(tmp_path: Path) -> None:
    line = "Hi . __eou__ Hello . __eou__"
    for split in ("train", "validation", "test"):
        text = f"{MARK}{line}{MARK}\n{MARK}\n{line}\u200b\n"
        (tmp_path / f"dialogues_{split}.txt").write_text(text, encoding="utf-8")
    read = read_dailydialog(tmp_path)["test"]
    assert read == [("test:1", ["Hi .", "Hello ."]), ("test:3", ["Hi .", "Hello ."])]


def test_a_mark_in_subtitles_becomes_no_word(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text(f"{MARK}A\nB\n\u200b\n{MARK}A\nB\u00ad\n\n{MARK}C\nD", encoding="utf-8")
    assert read_movie(tmp_path / "1.txt") == [["A", "B"], ["C", "D"]]
    assert clean_sentence([f"{MARK}Yes", "sir", "\u200b", MARK]) == "yes sir"
    assert clean_sentence(["Yes", "\u200b"]) is None  # one word


def test_a_mark_in_the_dictionary_becomes_no_letter() -> None:
    assert list(parse_dictionary(f"{MARK}a AH0\n{MARK}\n{MARK}b B IY1\n")) == [
        ("a", "a", "AH0", None),
        ("b", "b", "B IY1", None),
    ]
