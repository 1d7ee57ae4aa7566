"""A stage in shards: only what is missing is made, files go with their writers, progress counts across all shards."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter
from tasks.store.sharded import Shard, Sharded
from tasks.store.stage import Build, open_run, stage

PARTS = [Shard(("a.txt", "a.len"), "one"), Shard(("b.txt", "b.len"), "three", 2), Shard(("c.txt", "c.len"), "", 3)]


@stage
def lengths(build: Build) -> None:
    """Words and their lengths, a shard each."""
    shards = Sharded(build, "words", iter(PARTS))
    for shard in shards.missing():
        build.warn(shard.of)
        shards.tell(shard, 1)
        write_word, write_length = (partial(Path.write_text, data=text) for text in (shard.of, str(len(shard.of))))
        shards.write(shard, write_word, write_length)
    build.record(bytes=build.shards.collect(*shards.files))


class Ear(NullReporter):
    """Hears the progress, and which shards are made; dies of one of them."""

    def __init__(self, dies_of: str = "-") -> None:
        self.dies_of = dies_of
        self.told: list[tuple[float, float, str]] = []
        self.made: list[str] = []

    def stage_progress(self, stage: str, done: float, total: float, unit: str, metrics: object) -> None:
        self.told.append((done, total, unit))

    def warning(self, text: str) -> None:
        if text == self.dies_of:
            raise KeyboardInterrupt
        self.made.append(text)


def make(store: Store, ear: Ear) -> Artifact:
    with open_run(store, name="test", reporter=ear):
        return lengths()


def test_every_file_has_what_its_own_writer_wrote(tmp_path: Path) -> None:
    artifact = make(Store(tmp_path), Ear())
    found = {path.name: path.read_text() for path in artifact.path.iterdir() if path.name != "manifest.json"}
    assert found == {"a.txt": "one", "a.len": "3", "b.txt": "three", "b.len": "5", "c.txt": "", "c.len": "0"}
    assert artifact.manifest().stats["bytes"] == 8 + 3


def test_progress_counts_across_all_shards_in_their_sizes(tmp_path: Path) -> None:
    ear = Ear()
    make(Store(tmp_path), ear)
    assert ear.told == [(done, 6, "words") for done in (0, 1, 1, 2, 3, 4, 6)]


def test_after_a_kill_only_what_is_missing_is_made_and_progress_begins_there(tmp_path: Path) -> None:
    store, again = Store(tmp_path), Ear()
    with pytest.raises(KeyboardInterrupt):
        make(store, Ear(dies_of="three"))
    make(store, again)
    assert again.made == ["three", ""]
    assert again.told[0] == (1, 6, "words")


def test_of_a_shard_that_lacks_one_file_all_are_made_anew(tmp_path: Path) -> None:
    store, again = Store(tmp_path), Ear()
    with pytest.raises(KeyboardInterrupt):
        make(store, Ear(dies_of=""))
    (unfinished,) = (store.root / ".checkpoints").iterdir()
    (unfinished / "a.len").unlink()
    make(store, again)
    assert again.made == ["one", ""]


def test_a_file_without_a_writer_is_refused(tmp_path: Path) -> None:
    @stage
    def forgetful(build: Build) -> None:
        """Writes one file of two."""
        shards = Sharded(build, "words", PARTS)
        for shard in shards.missing():
            shards.write(shard, lambda path: path.write_text("x"))

    with open_run(Store(tmp_path), name="test"), pytest.raises(ValueError, match="shorter"):
        forgetful()
