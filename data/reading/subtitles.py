"""Subtitles to dialogues: the XML of OPUS, plain or gzipped, tokenised or raw, and a plain text form.

A sentence that goes on within 2 seconds of the one before belongs to the same dialogue. The rules for dialogues and for
sentences are those of ParlAI's task opensubtitles (2018), which Wen et al. used, written anew.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from data.reading.named_files import FETCH, POINTER, foreign_encoding, is_pointer
from data.visible import comparable, is_blank, without_marks

MAX_PAUSE = 2  # whole seconds between sentences of one dialogue
MIN_WORDS, MAX_WORDS = 2, 20  # of a sentence
MAX_BYTES = 64 * 2**20  # of one file, unpacked: a film's subtitles have a hundredth of it

_TIME = re.compile(r"(\d\d):(\d\d):(\d\d),...")
_WORDPUNCT = re.compile(r"\w+|[^\w\s]+")
_BRACKETED = re.compile(r"<!--.*?-->|<[^>]*>|\([^)]*\)|\[[^\]]*\]|\{[^}]*\}|##|~")
_UNBALANCED = re.compile(r"[\[\](){}<>#]")
_SPEAKER = re.compile(r"^\s*[A-z]*\s*:")
_DASHES = re.compile(r"-{2,}")
_TITLE = re.compile(r"(?<= mr| jr| ms| dr| st|mrs) \.")
# contractions as NLTK splits them: don't, it 's, i 'm, going
_CONTRACTIONS = (
    (re.compile(r"(\s?)n(\s?)'(\s?)t(?=\s|$)"), r"\1n't"),
    (re.compile(r"'\s?(s|re|em|im|bout|cause|ve|d|ll|ne)(\s+|$)"), r" '\1\2"),
    (re.compile(r"'\s?il(\s|$)"), r" 'll\1"),
    (re.compile(r"(\s|^)i\s?'\s?(m|mm)(\s|$)"), r"\1i 'm\3"),
    (re.compile(r"in\s?'(\s|$)"), r"ing\1"),
    (re.compile(r"(\s|^)ma\s?'\s?am(\s|$)"), r"\1ma'am\2"),
    (re.compile(r"(\s|^)c\s?'\s?mon(\s|$)"), r"\1c'mon\2"),
    (re.compile(r"(\s|^)o\s?'\s?clock(\s|$)"), r"\1o'clock\2"),
    (re.compile(r"(\s|^)y\s?'\s?all(\s|$)"), r"\1y'all\2"),
)


def read_movie(path: Path) -> list[list[str]]:
    """The dialogues of one subtitle file, each of two turns or more; the first of equal ones.

    A `.txt` file holds a turn a line, dialogues separated by blank lines, and is taken as it is.
    Raises ValueError, without the path, for what is too large, damaged or not well-formed, or declares a document type.
    """
    content = _content(path)
    if path.suffix == ".txt":
        dialogues = list(_blocks(without_marks(_decoded(content))))
    else:
        dialogues = list(_dialogues(_sentences(content)))
    first: dict[tuple[str, ...], list[str]] = {}
    for turns in dialogues:
        first.setdefault(tuple(map(comparable, turns)), turns)
    return [turns for turns in first.values() if len(turns) > 1]


def _blocks(text: str) -> Iterator[list[str]]:
    """The lines between blank ones."""
    turns: list[str] = []
    for line in [*text.split("\n"), ""]:
        turns += [part.strip() for part in line.splitlines() if not is_blank(part)]
        if is_blank(line):
            yield turns
            turns = []


def clean_sentence(words: list[str]) -> str | None:
    """A sentence in lower case, contractions as NLTK splits them; None for one that is no utterance.

    Left out: what is in brackets, a speaker's name and colon, quotation marks, dashes. No utterance: a sentence that
    ends in a colon, has an unbalanced bracket, a # (a song) or an odd quotation mark, less than 2 words or over 20.
    """
    if words and words[-1] == ":":
        return None
    text = _BRACKETED.sub("", without_marks(" ".join(words)).strip(" -").lower())
    if _UNBALANCED.search(text):
        return None
    text = text.replace("\\'", "'")
    if text.count('"') % 2:
        return None
    text = " ".join(text.split())
    for pattern, replacement in _CONTRACTIONS:
        text = pattern.sub(replacement, text)
    text = _TITLE.sub(". ", _DASHES.sub(" ", _SPEAKER.sub("", text)))
    for mark in ('"', "``", "''", "% %"):
        text = text.replace(mark, " ")
    kept = [word for word in text.replace("i\u0307", "i").split() if not is_blank(word)]
    is_utterance = MIN_WORDS <= len(kept) <= MAX_WORDS and re.search(r"\w", " ".join(kept))
    return " ".join(kept) if is_utterance else None


@dataclass
class _Sentence:
    words: list[str] = field(default_factory=list)
    begin: int | None = None  # seconds, None where the file does not say
    end: int | None = None


def _dialogues(sentences: Iterator[_Sentence]) -> Iterator[list[str]]:
    last_end = -1000
    dialogue: list[str] = []
    for sentence in sentences:
        text = clean_sentence(sentence.words)
        begin, end = sentence.begin or last_end, sentence.end or last_end
        if text is None or begin - last_end > MAX_PAUSE:
            yield dialogue
            dialogue = []
        if text is not None:
            dialogue.append(text)
        last_end = max(begin, end)
    yield dialogue


def _sentences(content: bytes) -> Iterator[_Sentence]:
    """The <s> of an OPUS document: the words of its <w>, or of its text where it is not tokenised, and its times."""
    sentences: list[_Sentence] = []
    text: list[str] = []
    inside: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "s":
            sentences.append(_Sentence())
            text.clear()
        elif tag == "w":
            text.clear()
        elif tag == "time" and "s" in inside:
            _note_time(sentences[-1], attributes)
        inside.append(tag)

    def end(tag: str) -> None:
        inside.pop()
        if tag == "w" and "s" in inside:
            sentences[-1].words += "".join(text).split()
            text.clear()
        elif tag == "s":
            sentences[-1].words += _WORDPUNCT.findall("".join(text))

    def refuse(*_: Any) -> None:
        raise ValueError(
            "it declares a document type, which subtitles have no need of and which could expand without end"
        )

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"not well-formed XML: {error}") from None
    return iter(sentences)


def _note_time(sentence: _Sentence, attributes: dict[str, str]) -> None:
    """Ids end in S where a caption starts and in E where it ends; a sentence may span several captions."""
    match = _TIME.fullmatch(attributes.get("value", ""))
    if match is None:
        return
    hours, minutes, seconds = map(int, match.groups())
    at, which = 3600 * hours + 60 * minutes + seconds, attributes.get("id", "")[-1:]
    if which == "S":
        sentence.begin = at if sentence.begin is None else min(at, sentence.begin)
    elif which == "E":
        sentence.end = at if sentence.end is None else max(at, sentence.end)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        if is_pointer(file.read(len(POINTER))):
            raise ValueError(f"a Git LFS pointer, not the file itself; {FETCH}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"damaged gzip: {error}") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 2**20} MiB when unpacked, which no film's subtitles are")
    return bytes(content)


def _decoded(content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    foreign = foreign_encoding(content[:4096])
    if foreign is not None:
        raise ValueError(f"not UTF-8: {foreign[0]}")
    return text
