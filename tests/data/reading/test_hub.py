"""Hugging Face data sets, on a local directory that the real `datasets.load_dataset` reads."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.reading.specs import DatasetSettings
from data.sources import load


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two configurations, as a data set's card declares them; one column is none of ours."""
    folder = tmp_path / "news"
    for config, count in (("1.0", 30), ("2.0", 40)):
        (folder / config).mkdir(parents=True)
        for split, rows in (("train", count), ("validation", 4), ("test", 5)):
            columns = {
                "highlights": [f"{split} summary {i}" for i in range(rows)],
                "id": list(range(rows)),
                "article": [f"{split} text\n of  article {i}" for i in range(rows)],
            }
            pq.write_table(pa.table(columns), folder / config / f"{split}-00000-of-00001.parquet")
    configs = "".join(
        f"- config_name: '{config}'\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {config}/{s}-*\n" for s in ("train", "validation", "test"))
        for config in ("1.0", "2.0")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


def news(folder: Path, **fields: str) -> DatasetSettings:
    defaults = {
        "name": str(folder),
        "config_name": "2.0",
        "validation": "validation",
        "test": "test",
        "source_column": "article",
        "target_column": "highlights",
    }
    return DatasetSettings(source="hub", **(defaults | fields))  # type: ignore[arg-type]


def test_named_columns_of_a_named_configuration(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    corpus = load(news(folder), progress=lambda done, total: calls.append((done, total)))
    assert {split: table.num_rows for split, table in corpus.splits().items()} == {
        "train": 40,
        "validation": 4,
        "test": 5,
    }
    assert corpus.test.to_pylist()[4] == {
        "id": 4,
        "dialogue": "5",
        "source": "test text of article 4",
        "target": "test summary 4",
    }
    assert calls[-1] == (49, 49)


def test_a_slice_of_a_split_and_a_split_cut_from_train(folder: Path) -> None:
    settings = DatasetSettings(
        source="hub",
        name=str(folder),
        config_name="1.0",
        train="train[:20]",
        test="test",
        source_column="article",
        target_column="highlights",
    )
    assert load(settings).num_clean == {"train": 19, "validation": 1, "test": 5}


def test_progress_bars_are_left_as_they_were(folder: Path) -> None:
    assert not datasets.are_progress_bars_disabled()
    load(news(folder))
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source_column": "text"}, "has no column 'text'; it has 'highlights', 'id', 'article'"),
        ({"target_column": "id"}, "column 'id' of .* holds int64, not text"),
        ({"test": "tset"}, 'Unknown split "tset"'),
        ({"config_name": "3.0"}, r"cannot load the data set '.*news', 3\.0: .*3\.0.* not found"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(news(folder, **fields))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train.parquet", "no Parquet", "Parquet magic bytes not found"),
        ("train.csv", "source,target\na,b\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
    ],
)
def test_a_damaged_file_is_explained_by_its_cause(tmp_path: Path, name: str, content: str, reason: str) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(
        ValueError, match=f"cannot load the data set '.*damaged': .*{reason}.*\na local directory holds"
    ):
        load(DatasetSettings(source="hub", name=str(folder)))


def test_a_full_disk_stays_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: object, **options: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "cache")
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(OSError, match="No space left on device"):
        load(DatasetSettings(source="hub", name=str(tmp_path)))


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such directory: .*absent"):
        load(news(tmp_path / "absent"))


def test_a_column_of_turns(tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    lines = (json.dumps({"talk": [f"hi {i}", f"hello {i}", f"bye {i}"]}) + "\n" for i in range(10))
    (folder / "train.jsonl").write_text("".join(lines))
    corpus = load(DatasetSettings(source="hub", name=str(folder), turns_column="talk", context_turns=2))
    assert corpus.num_clean == {"train": 16, "validation": 2, "test": 2}
    assert corpus.validation.to_pylist()[1]["source"].startswith("hi ")


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    code = (
        "from data.sources import load; from data.reading.specs import DatasetSettings\n"
        "try: load(DatasetSettings(source='hub', name='someone/pairs', config_name='3.0.0', revision='abc'))\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("cannot load the data set 'someone/pairs', 3.0.0, revision abc: ")
    assert "reach" in first or "offline" in first
    assert second.startswith("give a local copy: name = a directory of its Parquet files, or source = 'files'")
