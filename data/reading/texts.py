"""Running text for causal language models: a file that the user names, or the papers that a package brings.

Documents come back whole, in two disjoint parts: what is distilled on (the transfer set), and what small models that
are made here are pre-trained on.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from data.reading.content import package_file, package_version, path_hash
from data.reading.named_files import CONVERT, check_encoding, named_file
from data.visible import is_blank, without_marks

PAPERS_PACKAGE = "aclsum"


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """A text to distil on, and one to pre-train on.

    `papers` is the body text of 250 papers in the package aclsum (MIT): whole papers, in an order drawn from the seed,
    are the transfer set until it has `transfer_words`; the rest is for pre-training. `file` is a text file, UTF-8; its
    pre-training text, where a model is made here, is another. Raises ValueError for a value out of range and for a
    field that another source reads.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # un-annotated, so that it is no field

    source: Literal["papers", "file"] = "papers"
    path: str | None = None  # file: the transfer set
    pretraining_path: str | None = None  # file: needed only where a model is described by its shape
    transfer_words: int = 90_000  # papers: about 120,000 tokens, the size of the paper's sets

    def __post_init__(self) -> None:
        if self.source not in ("papers", "file"):
            raise ValueError(f"source must be papers or file, got {self.source!r}")
        if self.source == "file" and self.path is None:
            raise ValueError("a text of source 'file' needs path\nname it: --set dataset.path=…")
        if self.source == "papers" and (self.path is not None or self.pretraining_path is not None):
            raise ValueError(
                "path and pretraining_path are of source 'file', and source is 'papers'\n--set dataset.source=file"
            )
        if self.transfer_words < 1:
            raise ValueError(f"transfer_words must be at least 1, got {self.transfer_words}")

    def identity(self) -> dict[str, Any]:
        """The settings with the content of what they name: files by hash, the package by version."""
        files = {
            name: path_hash(named_file(path)) for name in ("path", "pretraining_path") if (path := getattr(self, name))
        }
        package = {"package": package_version(PAPERS_PACKAGE)} if self.source == "papers" else {}
        return asdict(self) | files | package


@dataclass(frozen=True)
class Texts:
    """Whole documents, their white space normalised within lines, in the order in which they are read."""

    transfer: list[str]
    pretraining: list[str]


def load_texts(settings: TextSettings, seed: int = 0) -> Texts:
    """The documents of `settings`: the same input gives the same documents in the same order.

    Raises ValueError in one line for text that cannot be used or a package that is absent, FileNotFoundError.
    """
    if settings.source == "file":
        assert settings.path is not None  # checked by the settings
        more = [] if settings.pretraining_path is None else [_read(settings.pretraining_path)]
        return Texts([_read(settings.path)], more)
    papers = list(_papers())
    order = np.random.default_rng(seed).permutation(len(papers))
    words = np.cumsum([len(papers[i].split()) for i in order])
    taken = 1 + int(np.searchsorted(words, settings.transfer_words))
    if taken >= len(papers):
        raise ValueError(
            f"transfer_words {settings.transfer_words:,} leaves no paper to pre-train on\n"
            f"all {len(papers)} papers have {int(words[-1]):,} words"
        )
    return Texts([papers[i] for i in order[:taken]], [papers[i] for i in order[taken:]])


def _papers() -> Iterator[str]:
    """The body text of each paper, a paragraph a line. The package's code is not imported."""
    folder = package_file(PAPERS_PACKAGE, f"{PAPERS_PACKAGE}==0.1.2", "dataset", "paper_jsons")
    for path in sorted(folder.glob("*.json")):
        paragraphs = json.loads(path.read_bytes())["pdf_parse"]["body_text"]
        yield _normalised("\n".join(paragraph["text"] for paragraph in paragraphs))


def _read(path: str) -> str:
    file = named_file(path)
    check_encoding(file)
    content = file.read_bytes()
    try:
        text = _normalised(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        where = f"at byte {error.start}, line {1 + content.count(10, 0, error.start)}"
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} {where}\n{CONVERT}") from None
    if "\0" in text:
        raise ValueError(f"{path} is no text: it has a NUL at byte {content.index(0)}\nleave it out of the file")
    if not text:
        raise ValueError(f"{path} has no text in it\nname another file: --set dataset.path=…")
    return text


def _normalised(text: str) -> str:
    """Composed characters, single spaces, no empty lines, no byte order marks."""
    lines = (" ".join(line.split()) for line in unicodedata.normalize("NFC", without_marks(text)).splitlines())
    return "\n".join(line for line in lines if not is_blank(line))
