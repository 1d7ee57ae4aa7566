"""ACLSum: sentences of NLP papers and what experts made of them, read as data from the package aclsum.

For each of three aspects of a paper (challenge, approach, outcome) its annotators marked the sentences of abstract,
introduction and conclusion that tell of it, and wrote one sentence that sums them up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from data.reading.content import package_file
from data.reading.dialogues import RawRow

ASPECTS = ("challenge", "approach", "outcome")
SECTIONS = ("abstract", "introduction", "conclusion")
FILES = ("train.jsonl", "val.jsonl", "test.jsonl")  # splits are cut anew, by paper
OTHER_ASPECT = "the same sentences for another aspect"
_BEFORE = re.compile(r" ([.,;:!?%)\]}]|'s\b|n't\b)")
_AFTER = re.compile(r"([(\[{]) ")


def summary_rows() -> list[RawRow]:
    """A raw row for the sentences of a section that were marked for an aspect: the paper, the sentences, the summary.

    Sentences that were marked for two aspects are a pair for the first, and flawed for the others: a model that is
    given them cannot know which is meant. Source: Takeshita et al. 2024. Raises ValueError with the command that
    installs an absent package.
    """
    folder = package_file("aclsum", "aclsum==0.1.2", "dataset")
    lines = (line for name in FILES for line in (folder / name).read_text(encoding="utf-8").splitlines())
    return [row for line in lines for row in marked_sentences(json.loads(line))]


def marked_sentences(paper: dict[str, Any]) -> Iterator[RawRow]:
    """The rows of one paper."""
    seen: set[str] = set()
    for aspect in ASPECTS:
        for section in SECTIONS:
            sentences, marks = (paper[name] for name in ("sentences", "highlights"))
            marked = zip(sentences.get(section) or (), marks[aspect].get(section) or (), strict=True)
            source = " ".join(untokenised(sentence) for sentence, is_marked in marked if is_marked)
            if source:
                yield (
                    paper["id"],
                    source,
                    untokenised(paper["summary"][aspect]),
                    OTHER_ASPECT if source in seen else None,
                )
                seen.add(source)


def untokenised(sentence: str) -> str:
    """A sentence as people write it: no space before a comma, none after an opening bracket."""
    return _AFTER.sub(r"\1", _BEFORE.sub(r"\1", sentence))
