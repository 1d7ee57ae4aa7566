"""Tokenizers of our own: long texts in parts, all others as they are."""

import random
from collections import Counter
from pathlib import Path

import pytest

from kd_core.models import tokenizer
from kd_core.models.tokenizer import LONGEST, parts, train_tokenizer

DRAWS = random.Random(0)
WORDS = ["".join(DRAWS.choices("abcdefghij", k=DRAWS.randint(1, 8))) for _ in range(400)]
LINES = [" ".join(DRAWS.choices(WORDS, k=12)) for _ in range(300)]


def written(texts: list[str], folder: Path) -> dict[str, bytes]:
    train_tokenizer(texts, 100).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_texts_that_are_not_long_give_the_tokenizer_that_they_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = " ".join(DRAWS.choices(WORDS, k=LONGEST))[:LONGEST]
    texts = [*LINES, longest, " two  spaces ", "x" * 5_000, ""]
    now = written(texts, tmp_path / "now")
    monkeypatch.setattr(tokenizer, "parts", lambda text: [text])
    assert now == written(texts, tmp_path / "then")


def test_a_long_text_of_one_word_is_as_many_texts(tmp_path: Path) -> None:
    """Whole, a word of 6 MB takes hours, and its likelihood is no longer a number."""
    whole = written([*LINES, "x" * 2 * LONGEST], tmp_path / "whole")
    assert whole == written([*LINES, "x" * LONGEST, "x" * LONGEST], tmp_path / "parts")


def test_a_long_text_that_repeats_itself_is_done_in_no_time() -> None:
    """Whole, its 600 kB take the square of that: all that it repeats, each repetition as long as what is left."""
    made = train_tokenizer([*LINES, "hum " * 150_000], 100)
    assert made.tokenize("hum hum") == ["▁hum", "▁hum"]


@pytest.mark.parametrize("space", [" ", "   "])
def test_a_long_text_ends_its_parts_between_words(space: str) -> None:
    text = space.join(DRAWS.choices(WORDS, k=LONGEST))
    assert len(list(parts(text))) > 1
    assert max(map(len, parts(text))) <= LONGEST
    assert Counter(word for part in parts(text) for word in part.split()) == Counter(text.split())


@pytest.mark.parametrize("text", ["x" * (3 * LONGEST + 7), "y " + "x" * 2 * LONGEST, " " + "x" * 2 * LONGEST])
def test_nothing_of_a_long_text_is_lost(text: str) -> None:
    assert max(map(len, parts(text))) <= LONGEST
    assert "".join(parts(text)).replace(" ", "") == text.replace(" ", "")
