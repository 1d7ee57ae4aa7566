"""A flipped byte: seen at the next use, never carried on under a clean key, and gone with all that may have read it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.store import maintenance
from tasks.store.artifacts import Artifact, Store, StoreError
from tasks.store.files import read_json, write_json
from tasks.store.stage import Build, open_run, stage
from tests.tasks.store.tiny_stages import Listener, count, flip, run_all, words


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_a_flip_that_keeps_the_size_is_seen_by_the_next_run_and_by_its_plan(store: Store) -> None:
    made = run_all(store)
    flip(made.artifacts["upper"].path / "upper.txt")
    plan = run_all(store, planning=True).run.plan
    assert [row.status for row in plan] == ["hit", "damaged", "hit"]
    assert "upper.txt is not what it was" in plan[1].why
    again = run_all(store)
    assert again.outcomes == ["hit", "built", "hit"]  # what was counted before the flip is innocent
    assert "upper.txt is not what it was" in again.said.warnings[0]
    assert again.counted == made.counted == "4"
    assert list(maintenance.verify(store)) == []


def test_a_new_descendant_is_never_built_from_a_flipped_input(store: Store) -> None:
    made = run_all(store)
    flip(made.artifacts["upper"].path / "upper.txt", 0.3)
    other = run_all(store, letter="O")
    assert other.outcomes == ["hit", "built", "built"]
    assert other.counted == "1"


def test_an_input_that_is_damaged_while_a_stage_reads_it_spoils_the_stage_and_its_unfinished_work(
    store: Store,
) -> None:
    @stage
    def careless(build: Build, source: Artifact) -> None:
        flip(source.path / "words.txt")
        build.checkpoints.save(1, lambda path: (path / "state.txt").write_text("half") and None)

    told = r"words \w{8} cannot be read from: words\.txt is not what it was.*\nrun again"
    with pytest.raises(StoreError, match=told), open_run(store, name="mine"):
        careless(source=words(text="hello all"))
    assert [each.stage for each in store.artifacts()] == ["words"]
    assert len(list((store.root / ".checkpoints").iterdir())) == 1
    said = Listener()
    with open_run(store, name="mine", reporter=said):
        words(text="hello all")
    assert list((store.root / ".checkpoints").iterdir()) == []
    assert [text.split(":")[0].split(" ")[0] for text in said.warnings] == ["words", "careless"]


def test_what_a_damaged_input_makes_of_a_stage_is_told_as_that(store: Store) -> None:
    @stage
    def falls(build: Build, source: Artifact) -> None:
        flip(source.path / "words.txt")
        raise RuntimeError("the file makes no sense")

    with pytest.raises(StoreError, match=r"words \w{8} cannot be read from"), open_run(store, name="mine"):
        falls(source=words(text="hello all"))


def test_verify_moves_aside_what_is_damaged_and_what_was_built_from_it_since(store: Store) -> None:
    before = run_all(store).artifacts
    flip(before["words"].path / "words.txt", 0.1)
    later = tainted(store, before["words"])
    (problem,) = maintenance.verify(store)
    assert (problem.artifact, problem.what.split()[0]) == (before["words"], "words.txt")
    gone = {each for each in (*before.values(), *later) if not each.path.exists()}
    assert gone == {before["words"], *later}  # and not what was finished before the flip
    assert len(problem.moved) == 3
    assert all(moved.to is not None and moved.to.exists() for moved in problem.moved)
    assert list(maintenance.verify(store)) == []
    assert run_all(store).outcomes == ["built", "hit", "hit"]


def tainted(store: Store, source: Artifact) -> list[Artifact]:
    """Two artifacts, one from the other, that were built from a flipped input by somebody who did not look."""
    made = [Artifact("upper", "0" * 32, store.root / "artifacts/upper" / ("0" * 32))]
    made.append(Artifact("count", "1" * 32, store.root / "artifacts/count" / ("1" * 32)))
    for artifact, read in zip(made, (source.key, made[0].key), strict=True):
        like = next(each for each in store.artifacts(artifact.stage))
        shutil.copytree(like.path, artifact.path)
        manifest = read_json(artifact.path / "manifest.json")
        manifest["key"], manifest["key_record"]["inputs"] = artifact.key, {"source": read}
        write_json(artifact.path / "manifest.json", manifest)
    return made


def test_where_no_time_tells_everything_built_from_a_damaged_file_goes(store: Store) -> None:
    made = run_all(store).artifacts
    silently_flip(made["words"].path / "words.txt")
    (problem,) = maintenance.verify(store)
    assert len(problem.moved) == 3
    assert list(store.artifacts()) == []
    assert run_all(store).outcomes == ["built", "built", "built"]


def test_an_input_that_was_rebuilt_with_other_bytes_makes_its_descendants_misses(store: Store) -> None:
    made = run_all(store)
    source = made.artifacts["upper"]
    (source.path / "upper.txt").write_text("HELLO YOU")
    manifest = read_json(source.path / "manifest.json")
    manifest["files"]["upper.txt"]["sha256"] = "of another machine"
    write_json(source.path / "manifest.json", manifest)
    (store.root / ".checked" / f"upper-{source.key}.json").unlink()
    with open_run(store, name="mine", planning=True) as run:
        count(sources={"a": source}, letter="L")
    assert run.plan[0].status == "damaged"
    assert run.plan[0].why == "built from another sources.a than there is now"


@pytest.mark.parametrize("file", ["manifest", "memo", "run"])
@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_flip_in_a_record_is_never_a_wrong_number(store: Store, file: str, place: float) -> None:
    made = run_all(store)
    source = made.artifacts["upper"]
    name = f"{source.stage}-{source.key}"
    flip(
        {
            "manifest": source.path / "manifest.json",
            "memo": store.root / ".checked" / f"{name}.json",
            "run": store.root / "runs" / f"{made.run.run_id}.json",
        }[file],
        place,
    )
    again = run_all(store)
    assert again.counted == "4"
    assert again.outcomes == ["hit", "built" if file == "manifest" else "hit", "hit"]


def test_contents_are_hashed_once_for_as_long_as_no_file_is_touched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(store)
    hashed: list[str] = []
    monkeypatch.setattr("tasks.store.artifacts.file_hash", lambda path: hashed.append(path.name) or "wrong")
    assert run_all(store).outcomes == ["hit", "hit", "hit"]
    assert hashed == []


def test_a_store_from_before_contents_were_remembered_is_read_once_and_then_known(store: Store) -> None:
    run_all(store)
    shutil.rmtree(store.root / ".checked")
    for path in (store.root / "artifacts").glob("*/*/manifest.json"):
        manifest = read_json(path)
        del manifest["inputs"]
        path.write_text(json.dumps(manifest))  # without a seal
    old = Store(store.root)
    assert run_all(old).outcomes == ["hit", "hit", "hit"]
    assert len(list((store.root / ".checked").glob("*.json"))) == 3


def test_what_cannot_be_read_is_not_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_all(store)
    os.utime(made.artifacts["upper"].path / "upper.txt")

    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tasks.store.artifacts.file_hash", refused)
    with pytest.raises(PermissionError, match="Permission denied"):
        run_all(store)
    assert list((store.root / ".damaged").iterdir()) == []


def test_verify_looks_again_once_it_has_the_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(store)
    damage, looks = Store.damage, []

    def healed_meanwhile(self: Store, artifact: Artifact, **more: Any) -> str | None:
        looks.append(artifact.stage)
        return "damaged" if looks.count(artifact.stage) == 1 else damage(self, artifact, **more)

    monkeypatch.setattr(Store, "damage", healed_meanwhile)
    assert list(maintenance.verify(store)) == []
    assert len(looks) == 6
    assert len(list(store.artifacts())) == 3


def test_what_cannot_be_read_does_not_end_verify(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_all(store)
    damage = Store.damage

    def one_refused(self: Store, artifact: Artifact, **more: Any) -> str | None:
        if artifact.stage == "count":
            raise OSError(5, "Input/output error")
        return damage(self, artifact, **more)

    flip(made.artifacts["upper"].path / "upper.txt")
    monkeypatch.setattr(Store, "damage", one_refused)
    found = {problem.artifact.stage: problem.what for problem in maintenance.verify(store)}
    assert found["count"] == "cannot be read: Input/output error"
    assert found["upper"].startswith("upper.txt is not what it was")


def test_a_suspect_that_somebody_holds_is_marked_and_is_no_hit_afterwards(store: Store) -> None:
    made = run_all(store).artifacts
    silently_flip(made["words"].path / "words.txt")
    with store.lock(made["count"], print):
        (problem,) = maintenance.verify(store)
    assert [moved.to is None for moved in problem.moved] == [False, True, False]
    assert [each.stage for each in store.artifacts()] == ["count"]
    again = run_all(store)
    assert again.outcomes == ["built", "built", "built"]
    assert "built from something that was damaged then" in again.said.warnings[0]
    assert run_all(store).outcomes == ["hit", "hit", "hit"]


def silently_flip(path: Path) -> None:
    """As a bit that flips by itself: no time tells."""
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_quarantine_that_was_cut_off_is_finished_by_the_next_look(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run_all(store).artifacts
    silently_flip(made["words"].path / "words.txt")
    aside, left = Store.set_aside, [1]

    def cut_off(self: Store, path: Path) -> Path:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return aside(self, path)

    monkeypatch.setattr(Store, "set_aside", cut_off)
    with pytest.raises(KeyboardInterrupt):
        list(maintenance.verify(store))
    monkeypatch.undo()
    (problem,) = maintenance.verify(store)
    assert len(problem.moved) == 2
    assert list(store.artifacts()) == []


def test_where_a_store_was_copied_without_its_times_none_of_them_tells(store: Store) -> None:
    made = run_all(store).artifacts
    for path in (store.root / "artifacts").rglob("*"):
        os.utime(path, (4e9, 4e9))
    silently_flip(made["words"].path / "words.txt")
    (problem,) = maintenance.verify(store)
    assert len(problem.moved) == 3
