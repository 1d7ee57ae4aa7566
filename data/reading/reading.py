"""One way in for all sources: settings to raw rows by split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from data.cleaning.wen import Deduplicated
from data.reading.columns import Columns
from data.reading.content import expanded
from data.reading.dialogues import RawRow
from data.reading.files import read_rows
from data.reading.hub import hub_rows, load_hub_splits
from data.reading.packaged import PACKAGED
from data.reading.raw_corpora import dailydialog, opensubtitles
from data.reading.specs import DatasetSettings

Progress = Callable[[int, int], None]  # done, total, in the source's unit
PROGRESS_UNITS = {
    **{name: each.unit for name, each in PACKAGED.items()},
    "files": "bytes",
    "hub": "rows",
    "dailydialog": "dialogues",
    "opensubtitles": "movies",
}


@dataclass(frozen=True)
class Raw:
    """Split -> its raw rows; what the overlap search found, for the corpora that it cleans."""

    rows: dict[str, Iterator[RawRow]]
    search: Deduplicated | None = None


def read(settings: DatasetSettings, progress: Progress) -> Raw:
    """The raw rows, read while they are consumed; only train for what packages bring, which comes without splits.

    The first row of every split is read at once, so that a wrong path or column is found before an hour of reading.
    Raises FileNotFoundError, ValueError.
    """
    rules, search = settings.wen_rules(), None
    if rules is not None:
        read_corpus = dailydialog if settings.source == "dailydialog" else opensubtitles
        rows, search = read_corpus(settings, rules, progress)
    elif settings.source in PACKAGED:
        packaged = PACKAGED[settings.source]
        rows = {"train": packaged.read(settings.context_turns, settings.turn_separator, progress)}
    elif settings.source == "files":
        rows = _file_rows(settings, progress)
    else:
        rows = _hub_rows(settings, progress)
    return Raw({split: _primed(iterator) for split, iterator in rows.items()}, search)


def _file_rows(settings: DatasetSettings, progress: Progress) -> dict[str, Iterator[RawRow]]:
    columns = Columns.of(settings)
    paths = {split: expanded(name) for split, name in settings.split_names().items()}
    meter = _Meter(sum(path.stat().st_size for path in paths.values() if path.is_file()), progress)
    return {split: read_rows(path, columns, meter.part(split)) for split, path in paths.items()}


def _hub_rows(settings: DatasetSettings, progress: Progress) -> dict[str, Iterator[RawRow]]:
    columns = Columns.of(settings)
    datasets = load_hub_splits(settings)
    meter = _Meter(sum(dataset.num_rows for dataset in datasets.values()), progress)
    return {
        split: hub_rows(dataset, columns, f"{settings.name} ({split})", meter.part(split))
        for split, dataset in datasets.items()
    }


def _primed(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    first = next(rows, None)
    return rows if first is None else chain([first], rows)


class _Meter:
    """The progress of several parts, read one after another or interleaved, as one."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total = total
        self._progress = progress
        self._done: dict[str, int] = {}

    def part(self, name: str) -> Callable[[int], None]:
        def advance(done: int) -> None:
            self._done[name] = done
            self._progress(sum(self._done.values()), self._total)

        return advance
