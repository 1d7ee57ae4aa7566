"""DailyDialog and OpenSubtitles from their raw files to the pairs of each split, by the cleaning of Wen et al."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from data.cleaning.overlap import type_sets
from data.cleaning.wen import OVERLAP_SCHEMA, Deduplicated, deduplicate
from data.cleaning.wen_rules import SPLIT_SEED, WenRules
from data.reading.corpora import SPLITS, movie_files
from data.reading.dailydialog import read_dailydialog
from data.reading.dialogues import Dialogue, RawRow, pairs_of_turns
from data.reading.specs import DatasetSettings
from data.reading.subtitles import read_movie

Rows = dict[str, Iterator[RawRow]]
Progress = Callable[[int, int], None]


def dailydialog(settings: DatasetSettings, rules: WenRules, progress: Progress) -> tuple[Rows, Deduplicated]:
    """The official splits pooled in the order train, validation, test, cleaned and split anew; an item is a dialogue.

    Raises FileNotFoundError, ValueError.
    """
    official = read_dailydialog(settings.path or "")
    dialogues = [dialogue for split in SPLITS for dialogue in official[split]]
    sets = type_sets((turns for _, turns in dialogues), rules.vocabulary)
    begin, members = 0, {}
    for split in SPLITS:
        members[split] = list(range(begin, begin + len(official[split])))
        begin += len(official[split])
    found = deduplicate([name for name, _ in dialogues], sets, rules, random.Random(SPLIT_SEED), members)
    progress(len(dialogues), len(dialogues))
    rows = {split: _rows([dialogues[i] for i in chosen], settings) for split, chosen in found.splits.items()}
    return rows, found


def opensubtitles(settings: DatasetSettings, rules: WenRules, progress: Progress) -> tuple[Rows, Deduplicated]:
    """A sample of the movies, cleaned and split; of test's and of validation's dialogues again a sample.

    An item is a movie. Movies are read twice, so that only their word types are ever in memory together. A file that
    cannot be read is a finding, not the end. Raises FileNotFoundError; ValueError where no file can be read.
    """
    files = movie_files(settings.path or "", settings.sampled_items)
    damaged: dict[str, str] = {}
    sets = type_sets(_movies(files, damaged, progress), rules.vocabulary)
    names = [name for name in files if name not in damaged]
    if not names:
        name, why = next(iter(damaged.items()))
        raise ValueError(f"none of {len(files)} movies can be read; {files[name]}: {why}\ngive others in dataset.path")
    rng = random.Random(SPLIT_SEED)
    found = deduplicate(names, sets, rules, rng, None)
    dialogues = {
        split: [dialogue for i in found.splits[split] for dialogue in _dialogues(names[i], files)]
        for split in ("test", "validation")
    }
    rows = {
        split: _rows(rng.sample(each, min(settings.heldout_dialogues, len(each))), settings)
        for split, each in dialogues.items()  # test first: one generator, in the authors' order
    }
    train = (dialogue for i in found.splits["train"] for dialogue in _dialogues(names[i], files))
    return {"train": _rows(train, settings), **rows}, _with_damaged(found, damaged)


def _rows(dialogues: Iterable[Dialogue], settings: DatasetSettings) -> Iterator[RawRow]:
    for dialogue in dialogues:
        yield from pairs_of_turns(dialogue, settings.context_turns, settings.turn_separator)


def _movies(files: dict[str, Path], damaged: dict[str, str], progress: Progress) -> Iterator[list[str]]:
    """The turns of each movie that can be read; why the others cannot goes into `damaged`."""
    for done, (name, path) in enumerate(files.items(), start=1):
        try:
            yield [turn for dialogue in read_movie(path) for turn in dialogue]
        except ValueError as error:
            damaged[name] = str(error)
        if done % 100 == 0 or done == len(files):
            progress(done, len(files))


def _dialogues(name: str, files: dict[str, Path]) -> list[Dialogue]:
    return [(f"{name}:{number}", turns) for number, turns in enumerate(read_movie(files[name]), start=1)]


def _with_damaged(found: Deduplicated, damaged: dict[str, str]) -> Deduplicated:
    rows = [{"item": name, "decision": "dropped", "reason": f"unreadable: {why}"} for name, why in damaged.items()]
    more = pa.Table.from_pylist(rows, schema=OVERLAP_SCHEMA)
    return replace(found, overlaps=pa.concat_tables([found.overlaps, more]))
