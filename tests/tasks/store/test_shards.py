"""Shards of an unfinished build: a damaged one is named, dropped and made anew; what is committed was written."""

from pathlib import Path

import pytest

import tasks.store.files
from tasks.store.artifacts import FileRecord, StoreError
from tasks.store.files import file_hash
from tasks.store.shards import Shards


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
