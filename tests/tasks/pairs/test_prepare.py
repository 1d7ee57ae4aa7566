"""The stage `prepare`: what lies in its artifact, and when it is built again."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.reading.specs import DatasetSettings
from data.sources import load
from tasks.engine.settings import RuntimeSettings
from tasks.pairs.prepare import prepare
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter, Reporter
from tasks.store.stage import open_run

FILES = ("train.parquet", "validation.parquet", "test.parquet", "dropped.parquet")


def write(path: Path, count: int, word: str = "answer") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["talk", "context", "response"])
        writer.writerows([f"talk {i % 20}", f"question number {i}", f"{word} {i}"] for i in range(count))
        writer.writerows([["talk 0", "question number 0", f"{word} 0!"], ["talk 1", "", "unasked"]])


def settings(path: Path, **fields: int) -> DatasetSettings:
    return DatasetSettings(
        source="files",
        path=str(path),
        source_column="context",
        target_column="response",
        dialogue_column="talk",
        **fields,  # type: ignore[arg-type]
    )


def run(
    store: Store,
    dataset: DatasetSettings,
    seed: int = 0,
    limit: int | None = None,
    runtime: RuntimeSettings | None = None,
    reporter: Reporter | None = None,
) -> tuple[Artifact, str]:
    with open_run(store, name="test", parameters={}, runtime=runtime, reporter=reporter) as opened:
        artifact = prepare(dataset=dataset, seed=seed, limit=limit)
    return artifact, opened.stages[-1].outcome


def hashes(artifact: Artifact) -> dict[str, str]:
    return {name: hashlib.sha256((artifact.path / name).read_bytes()).hexdigest() for name in FILES}


def test_an_artifact_holds_every_row_once_and_counts_them(tmp_path: Path) -> None:
    write(tmp_path / "all.csv", 100)
    artifact, outcome = run(Store(tmp_path / "store"), settings(tmp_path / "all.csv"))
    assert outcome == "built"
    tables = {name: pq.read_table(artifact.path / name) for name in FILES}
    for name in FILES[:3]:
        assert tables[name].schema.equals(
            pa.schema([("id", pa.int64()), *((text, pa.string()) for text in ("dialogue", "source", "target"))])
        )
    assert tables["dropped.parquet"].schema.names == ["split", "dialogue", "source", "target", "reason"]
    assert sum(table.num_rows for table in tables.values()) == 102
    # 20 talks of 5 pairs: one talk each for validation and test
    stats = artifact.manifest().stats
    assert [stats[f"{split}_pairs"] for split in ("train", "validation", "test")] == [90, 5, 5]
    assert [stats[f"{split}_dialogues"] for split in ("train", "validation", "test")] == [18, 1, 1]
    assert (stats["train_source_words_median"], stats["train_target_words_p95"]) == (3.0, 2.0)
    assert sorted(tables["dropped.parquet"]["reason"].to_pylist()) == ["duplicate", "empty source"]
    assert sum(int(stats[f"dropped_{split}"]) for split in ("train", "validation", "test")) == 2
    assert sum(value for name, value in stats.items() if name.startswith("dropped: ")) == 2


def test_the_same_content_elsewhere_is_a_hit_and_other_content_a_miss(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name in ("one.csv", "two.csv"):
        write(tmp_path / name, 100)
    first, _ = run(store, settings(tmp_path / "one.csv"))
    assert run(store, settings(tmp_path / "two.csv")) == (first, "hit")
    write(tmp_path / "two.csv", 100, "reply")
    other, outcome = run(store, settings(tmp_path / "two.csv"))
    assert outcome == "built"
    assert other.key != first.key


def test_built_twice_byte_identical_and_by_seed(tmp_path: Path) -> None:
    write(tmp_path / "all.csv", 300)
    dataset = settings(tmp_path / "all.csv", max_test=3)
    built = [run(Store(tmp_path / name), dataset, seed=5, limit=50)[0] for name in ("one", "two")]
    assert hashes(built[0]) == hashes(built[1])
    assert built[0].manifest().stats["train_pairs"] == 50
    assert built[0].manifest().stats["train_pairs_before_limits"] == 270
    assert built[0].manifest().stats["test_pairs"] == 3
    other, outcome = run(Store(tmp_path / "one"), dataset, seed=6, limit=50)
    assert outcome == "built"
    assert hashes(other)["test.parquet"] != hashes(built[0])["test.parquet"]


def test_an_unpinned_hub_data_set_is_warned_of_and_a_pinned_or_local_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "all.csv", 100)
    corpus = load(settings(tmp_path / "all.csv"))
    monkeypatch.setattr("tasks.pairs.prepare.load", lambda *arguments: corpus)  # no hub is reached here
    store = Store(tmp_path / "store")

    def warnings(name: str, revision: str | None) -> object:
        artifact, _ = run(store, DatasetSettings(source="hub", name=name, revision=revision))
        return artifact.manifest().stats.get("warnings")

    text = "someone/pairs has no revision: if it changes on the hub, this artifact will not notice"
    assert warnings("someone/pairs", None) == [text]
    assert warnings("someone/pairs", "abc") is None
    assert warnings(str(tmp_path), None) is None


def test_the_search_for_overlap_is_made_in_shards_that_survive_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "all.csv", 200)
    whole, _ = run(Store(tmp_path / "whole"), settings(tmp_path / "all.csv"))
    monkeypatch.setattr("data.cleaning.split_overlap.PART_BYTES", 1000)

    class Killed(Exception):
        pass

    class Ear(NullReporter):
        def __init__(self, last: float) -> None:
            self.told: list[float] = []
            self._last = last

        def stage_progress(
            self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]
        ) -> None:
            if unit == "dialogues searched":
                self.told.append(done)
                if done > self._last:
                    raise Killed

    store, first, second = Store(tmp_path / "broken"), Ear(8), Ear(1000)
    with pytest.raises(Killed):
        run(store, settings(tmp_path / "all.csv"), reporter=first)
    built, outcome = run(store, settings(tmp_path / "all.csv"), reporter=second)
    assert outcome == "built"
    assert (first.told[0], second.told[0]) == (0, first.told[-2]), "what was finished is not searched again"
    assert built.manifest().files == whole.manifest().files
    assert list((store.root / ".checkpoints").iterdir()) == []


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "all.csv", 100)
    store = Store(tmp_path / "store")
    with pytest.raises(ValueError, match="the split train is empty after cleaning: all 92 rows dropped"):
        run(store, settings(tmp_path / "all.csv", max_source_words=2))
    assert not [path for path in (store.root / "artifacts").rglob("*") if path.is_file()]
    assert run(store, settings(tmp_path / "all.csv", max_source_words=3))[1] == "built"
