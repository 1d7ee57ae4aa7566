"""Shards of an unfinished build: a damaged one is named, dropped and made anew; what is committed was written.

A stage in shards makes what is missing and no more; files go with their writers, progress counts across all shards.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Timer

import pytest

import tasks.store.files
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Artifact, FileRecord, Store, StoreError
from tasks.store.files import file_hash
from tasks.store.progress import NullReporter
from tasks.store.shards import Making, Shard, Sharded, Shards
from tasks.store.stage import Build, open_run, stage


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    unfinished, built = tmp_path / "score-key", tmp_path / "built"
    unfinished.mkdir()
    built.mkdir()
    return unfinished, built


def shards_in(places: tuple[Path, Path], warnings: list[str]) -> Shards:
    return Shards(*places, warnings.append)


def write(shards: Shards, name: str, text: str = "whole") -> None:
    shards.write(name, lambda path: path.write_text(text))


def test_what_was_finished_is_there_after_a_kill(places: tuple[Path, Path], warnings: list[str]) -> None:
    write(shards_in(places, warnings), "a.txt")
    again = shards_in(places, warnings)
    assert again.whole("a.txt")
    assert not again.whole("a.txt", "b.txt")
    assert again.collect("a.txt") == len("whole")
    assert (places[1] / "a.txt").read_text() == "whole"
    assert warnings == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "torn hash", "hash that is no text"])
def test_a_damaged_one_is_named_dropped_and_made_anew(
    places: tuple[Path, Path], warnings: list[str], damage: str
) -> None:
    write(shards_in(places, warnings), "a.txt")
    path, beside = places[0] / "a.txt", places[0] / "a.txt.sha256"
    changed = {"flip": b"whale", "truncate": b"whol", "empty": b""}
    if damage in changed:
        path.write_bytes(changed[damage])
    else:
        beside.write_bytes({"torn hash": b"12", "hash that is no text": b"\xff\xfe"}[damage])
    again = shards_in(places, warnings)
    assert not again.whole("a.txt")
    assert [str(path) in text for text in warnings] == [True]
    assert list(places[0].iterdir()) == []
    write(again, "a.txt")
    assert shards_in(places, warnings).whole("a.txt")


def test_one_that_was_killed_before_its_hash_was_written_was_never_finished(
    places: tuple[Path, Path], warnings: list[str]
) -> None:
    write(shards_in(places, warnings), "a.txt")
    (places[0] / "a.txt.sha256").unlink()
    assert not shards_in(places, warnings).whole("a.txt")
    assert warnings == []


def test_what_changes_between_writing_and_committing_is_not_committed(
    places: tuple[Path, Path], warnings: list[str]
) -> None:
    shards = shards_in(places, warnings)
    write(shards, "a.txt")
    shards.collect("a.txt")
    committed = {"a.txt": FileRecord(5, file_hash(places[1] / "a.txt")), "other.txt": FileRecord(1, "0")}
    shards.check(committed)
    with pytest.raises(StoreError, match=r"a\.txt has changed since it was written\nrun again"):
        shards.check(committed | {"a.txt": FileRecord(5, "another")})


def test_where_there_are_no_hard_links_shards_are_copied(
    places: tuple[Path, Path], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(tasks.store.files.Path, "hardlink_to", refused)
    shards = shards_in(places, warnings)
    write(shards, "a.txt")
    assert shards.collect("a.txt") == 5
    assert (places[1] / "a.txt").read_text() == "whole"
    assert (places[1] / "a.txt").stat().st_ino != (places[0] / "a.txt").stat().st_ino


# --- a stage in shards


PARTS = [Shard(("a.txt", "a.len"), "one"), Shard(("b.txt", "b.len"), "three", 2), Shard(("c.txt", "c.len"), "", 3)]


def written(warn: Callable[[str], None], word: str) -> Making:
    warn(word)
    yield 1
    return [partial(Path.write_text, data=text) for text in (word, str(len(word)))]


@stage
def lengths(build: Build) -> None:
    """Words and their lengths, a shard each."""
    shards = Sharded(build, "words", iter(PARTS))
    shards.make(lambda runtime: partial(written, build.warn))
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


def test_where_nothing_is_missing_nothing_is_opened(tmp_path: Path) -> None:
    opened: list[str] = []

    def opens(runtime: RuntimeSettings) -> Callable[[str], Making]:
        opened.append(runtime.device)
        return partial(written, lambda word: None)

    @stage
    def twice(build: Build) -> None:
        """Asks for the same shards twice."""
        for _ in range(2):
            Sharded(build, "words", PARTS).make(opens)

    with open_run(Store(tmp_path), name="test", runtime=RuntimeSettings(device="cpu")):
        twice()
    assert opened == ["cpu"]


def test_what_another_process_has_written_is_waited_for(places: tuple[Path, Path], warnings: list[str]) -> None:
    late = Timer(0.3, lambda: write(shards_in(places, warnings), "a.txt"))
    late.start()
    shards = shards_in(places, warnings)
    shards.written({"a.txt": "its hash"})
    assert (places[0] / "a.txt").read_text() == "whole"
    late.join()


def test_what_never_comes_is_named(
    places: tuple[Path, Path], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.store.shards.SEEN_SECONDS", 0.2)
    with pytest.raises(StoreError, match=r"a\.txt is not seen here, though a worker has written it\nmount the store"):
        shards_in(places, warnings).written({"a.txt": "its hash"})


def test_of_a_shard_that_lacks_one_file_all_are_made_anew(tmp_path: Path) -> None:
    store, again = Store(tmp_path), Ear()
    with pytest.raises(KeyboardInterrupt):
        make(store, Ear(dies_of=""))
    (unfinished,) = (store.root / ".checkpoints").iterdir()
    (unfinished / "a.len").unlink()
    make(store, again)
    assert again.made == ["one", ""]


def test_a_file_without_a_writer_is_refused(tmp_path: Path) -> None:
    def one_of_two(word: str) -> Making:
        yield 0
        return [lambda path: path.write_text("x")]

    @stage
    def forgetful(build: Build) -> None:
        """Writes one file of two."""
        Sharded(build, "words", PARTS).make(lambda runtime: one_of_two)

    with open_run(Store(tmp_path), name="test"), pytest.raises(ValueError, match="shorter"):
        forgetful()
