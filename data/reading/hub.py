"""Hugging Face data sets: by hub id, or a local directory that `datasets.load_dataset` reads."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.reading.columns import Columns, rows_of_arrow
from data.reading.content import expanded
from data.reading.dialogues import BATCH_ROWS, RawRow
from data.reading.named_files import check_no_pointer
from data.reading.specs import DatasetSettings

Advance = Callable[[int], None]


def load_hub_splits(settings: DatasetSettings) -> dict[str, Any]:
    """Split -> `datasets.Dataset`, for the splits that the settings name; no code of the data set is run.

    Raises ValueError, saying which data set and how to give a local copy, if the hub cannot be reached or has no such
    data set, configuration, revision or split; FileNotFoundError for a local directory that is not there.
    """
    import datasets  # here, because the import takes a second that other sources need not wait for

    name = settings.name or ""
    if settings.is_local():
        name = str(expanded(name))
    if settings.is_local() and not Path(name).is_dir():
        raise FileNotFoundError(f"no such directory: {name}\nname the one that you have: --set dataset.name=…")
    if settings.is_local():
        for file in sorted(Path(name).rglob("*")):
            if file.is_file():
                check_no_pointer(file)
    splits = settings.split_names()
    bars_were_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            name, settings.config_name, revision=settings.revision, split=list(splits.values())
        )
    except MemoryError:
        raise
    except Exception as error:  # whatever a loader and its transport raise: a dozen classes in four libraries
        cause = _cause(error)
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            raise cause from None
        raise ValueError(_explain(settings, cause)) from error
    finally:
        if not bars_were_off:
            datasets.enable_progress_bars()
    return dict(zip(splits, loaded, strict=True))


def hub_rows(dataset: Any, columns: Columns, where: str, advance: Advance) -> Iterator[RawRow]:
    """The raw rows of one split; `advance` is told how many rows have been read.

    Raises ValueError for missing columns and for columns that hold no text.
    """
    columns.check_present(dataset.column_names, where)
    chosen = dataset.select_columns(columns.names()).with_format("arrow")
    columns.check_types(chosen.features.arrow_schema, where)
    return rows_of_arrow(columns, _batches(chosen, columns, advance), where)


def _batches(dataset: Any, columns: Columns, advance: Advance) -> Iterator[Any]:
    done = 0
    for batch in dataset.iter(batch_size=BATCH_ROWS):
        done += batch.num_rows
        advance(done)
        yield batch.select(columns.names())


def _cause(error: Exception) -> BaseException:
    """What went wrong where building a data set failed: that error's own text says only that it did."""
    from datasets.exceptions import DatasetGenerationError

    return error.__cause__ or error if isinstance(error, DatasetGenerationError) else error


def _explain(settings: DatasetSettings, error: BaseException) -> str:
    parts = [settings.config_name, settings.revision and f"revision {settings.revision}"]
    details = "".join(f", {part}" for part in parts if part)
    reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
    advice = (
        "give a local copy: name = a directory of its Parquet files, or source = 'files' with train, validation, test"
    )
    if settings.is_local():
        advice = (
            "a local directory holds Parquet, JSONL or CSV files with a split's name in theirs, or a card that says"
        )
    return f"cannot load the data set {settings.name!r}{details}: {reason}\n{advice}"
