"""From settings to a corpus: the promises of `load`, on small files, chitchat and the authors' cleaned dialogues."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.cleaning.pairs import tokens
from data.reading.specs import DatasetSettings
from data.sources import Corpus, load
from tests.data.authors import authors_file

Rows = list[tuple[str, str]]


def write(path: Path, rows: Rows) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("source", "target"), *rows])
    return str(path)


def given_splits(folder: Path, train: Rows, validation: Rows, test: Rows, **fields: Any) -> DatasetSettings:
    paths = {"train": train, "validation": validation, "test": test}
    written = {split: write(folder / f"{split}.csv", rows) for split, rows in paths.items()}
    return DatasetSettings(source="files", **written, **fields)


def pairs(table: Any) -> Rows:
    return list(zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True))


def many(name: str, count: int) -> Rows:
    return [(f"{name} question {i}", f"{name} answer {i}") for i in range(count)]


def check_promises(corpus: Corpus) -> None:
    """No pair twice in a split, none of train's in another, ids from 0, no dialogue in two splits."""
    keys = {}
    for split, table in corpus.splits().items():
        assert table.schema.names == ["id", "dialogue", "source", "target"]
        assert table["id"].to_pylist() == list(range(table.num_rows))
        keys[split] = [(tuple(tokens(source)), tuple(tokens(target))) for source, target in pairs(table)]
        assert len(set(keys[split])) == len(keys[split])
    assert not set(keys["train"]) & (set(keys["validation"]) | set(keys["test"]))
    assert not set(keys["validation"]) & set(keys["test"])


def test_given_splits_lose_what_another_has(tmp_path: Path) -> None:
    train = [("a", "1"), ("b", "2"), ("A.", "1")]
    validation = [("c", "3"), ("b", "2!"), ("e", "5")]
    test = [("a", "1"), ("e", "5"), ("f", "6")]
    corpus = load(given_splits(tmp_path, train, validation, test))
    assert pairs(corpus.train) == [("a", "1"), ("b", "2")]
    assert pairs(corpus.validation) == [("c", "3")]
    assert pairs(corpus.test) == [("e", "5"), ("f", "6")]
    assert corpus.drops() == {
        ("test", "also in train"): 1,
        ("train", "duplicate"): 1,
        ("validation", "also in test"): 1,
        ("validation", "also in train"): 1,
    }
    check_promises(corpus)


def test_overlap_may_stay(tmp_path: Path) -> None:
    corpus = load(given_splits(tmp_path, [("a", "1")], [("a", "1")], [("a", "1"), ("a", "1")], remove_overlap=False))
    assert [table.num_rows for table in corpus.splits().values()] == [1, 1, 1]
    assert corpus.drops() == {("test", "duplicate"): 1}


def test_one_file_is_cut_by_dialogue(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["talk", "source", "target"])
        writer.writerows([f"talk {i % 40}", f"question {i}", f"answer {i}"] for i in range(200))
    settings = DatasetSettings(
        source="files", path=str(path), dialogue_column="talk", validation_share=0.1, test_share=0.25
    )
    corpus = load(settings, seed=3)
    dialogues = {split: set(table["dialogue"].to_pylist()) for split, table in corpus.splits().items()}
    assert {split: len(names) for split, names in dialogues.items()} == {"train": 26, "validation": 4, "test": 10}
    assert len(set().union(*dialogues.values())) == 40
    assert corpus.num_clean == {"train": 130, "validation": 20, "test": 50}
    check_promises(corpus)
    assert load(settings, seed=4).test != corpus.test


def test_only_the_split_that_is_missing_is_cut(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.csv", many("a", 40)), write(tmp_path / "test.csv", many("b", 3))
    corpus = load(DatasetSettings(source="files", train=train, test=test))
    assert corpus.num_clean == {"train": 38, "validation": 2, "test": 3}
    assert all(source.startswith("a") for source, _ in pairs(corpus.validation))


def test_limits_take_samples_and_leave_the_rest_alone(tmp_path: Path) -> None:
    # the overlap with train is removed whether or not the limit leaves it in train
    settings = given_splits(tmp_path, many("a", 50), many("b", 20), [*many("c", 20), *many("a", 50)], max_validation=5)
    whole, few = load(settings), load(settings, limit=10)
    assert (whole.train.num_rows, few.train.num_rows) == (50, 10)
    assert set(pairs(few.train)) < set(pairs(whole.train))
    assert few.validation == whole.validation
    assert few.test == whole.test
    assert pairs(few.test) == many("c", 20)
    assert few.validation.num_rows == 5
    assert few.num_clean == whole.num_clean == {"train": 50, "validation": 20, "test": 20}
    check_promises(few)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load(settings, limit=0)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_named_with_the_counts_by_reason(tmp_path: Path, split: str) -> None:
    splits = {"train": many("a", 3), "validation": many("b", 3), "test": many("c", 3)}
    splits[split] = [("", "x"), ("", "y"), ("too many words here", "z")]
    settings = given_splits(tmp_path, **splits, max_source_words=3)
    counts = "all 3 rows dropped: empty source 2, source longer than 3 words 1"
    with pytest.raises(ValueError, match=f"the split {split} is empty after cleaning: {counts}\n"):
        load(settings)
    splits[split] = []
    with pytest.raises(ValueError, match=f"the split {split} is empty after cleaning: no rows read\n"):
        load(given_splits(tmp_path, **splits))


def test_a_bad_last_split_is_found_before_the_first_is_read(tmp_path: Path) -> None:
    settings = given_splits(tmp_path, many("a", 30_000), many("b", 3), many("c", 3))
    (tmp_path / "validation.csv").write_text("prompt,reply\n")
    calls: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match=r"validation\.csv has no column 'source', 'target'; it has 'prompt', 'reply'"):
        load(settings, progress=lambda done, total: calls.append((done, total)))
    assert calls == []


def test_progress_counts_the_bytes_of_all_files(tmp_path: Path) -> None:
    settings = given_splits(tmp_path, many("a", 25_000), many("b", 3), many("c", 3))
    total = sum((tmp_path / f"{split}.csv").stat().st_size for split in ("train", "validation", "test"))
    calls: list[tuple[int, int]] = []
    load(settings, progress=lambda done, total: calls.append((done, total)))
    assert {call[1] for call in calls} == {total}
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert calls[-1] == (total, total)


def test_chitchat() -> None:
    pytest.importorskip("chitchat_dataset", reason="chitchat-dataset is an optional dependency")
    calls: list[tuple[int, int]] = []
    corpus = load(DatasetSettings(max_test=1000), limit=5000, progress=lambda done, total: calls.append((done, total)))
    check_promises(corpus)
    dialogues = [set(table["dialogue"].to_pylist()) for table in corpus.splits().values()]
    assert sum(map(len, dialogues)) == len(set().union(*dialogues))
    assert (corpus.train.num_rows, corpus.test.num_rows) == (5000, 1000)
    # 138,737 turns in 7,168 dialogues: every turn but a dialogue's first ends a pair; 3,150 have one turn only
    assert sum(corpus.num_clean.values()) + corpus.dropped.num_rows - 3150 == 138_737 - 7168
    assert Counter(corpus.dropped["reason"].to_pylist())["dialogue of one turn"] == 3150
    assert calls[-1] == (7168, 7168)


@pytest.mark.parametrize(
    ("name", "validation", "test", "shared"), [("dailydialog", 6594, 6955, 2), ("opensubtitles", 11982, 12152, 3)]
)
def test_nothing_is_left_to_drop_in_the_authors_cleaned_dialogues(
    tmp_path: Path, name: str, validation: int, test: int, shared: int
) -> None:
    """Wen et al. dropped duplicates by the same tokens. They compared with train only, so a few stay in both others."""
    train = tmp_path / "train.csv"
    train.write_text("context,response\nnot in,the others\n")
    settings = DatasetSettings(
        source="files",
        train=str(train),
        validation=str(authors_file(f"{name}/valid.csv")),
        test=str(authors_file(f"{name}/test.csv")),
        source_column="context",
        target_column="response",
    )
    corpus = load(settings)
    assert corpus.drops() == {("validation", "also in test"): shared}
    assert corpus.num_clean == {"train": 1, "validation": validation - shared, "test": test}


def run_python(code: str, **environment: str) -> bytes:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, cwd=root, env={**os.environ, **environment}
    ).stdout


def test_the_same_input_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", many("a", 300))
    code = (
        "import hashlib, pyarrow as pa, pyarrow.parquet as pq; from data.sources import load;"
        "from data.reading.specs import DatasetSettings;"
        f"corpus = load(DatasetSettings(source='files', path={path!r}, max_test=7), seed=1, limit=100);"
        "sinks = [(pq.write_table(table, sink := pa.BufferOutputStream()), sink)[1]"
        " for table in [*corpus.splits().values(), corpus.dropped]];"
        "print(*(hashlib.sha256(sink.getvalue()).hexdigest() for sink in sinks))"
    )
    first = run_python(code, PYTHONHASHSEED="1")
    assert first == run_python(code, PYTHONHASHSEED="2")
    assert len(set(first.split())) == 4


def test_no_torch() -> None:
    loaded = run_python("import sys, data.sources; print('torch' in sys.modules, 'datasets' in sys.modules)")
    assert loaded.split() == [b"False", b"False"]
