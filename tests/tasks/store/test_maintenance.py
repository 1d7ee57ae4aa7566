"""What `distill gc` takes, and what it leaves because somebody uses it, will, or may."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from tasks.store import maintenance
from tasks.store.artifacts import Artifact, Store, StoreError
from tasks.store.files import partial_of
from tasks.store.runs import RunRecord, read_runs
from tasks.store.stage import open_run
from tests.tasks.store.tiny_stages import Made, flip, run_all, words

LONG_AGO = "2020-01-01T00:00:00.000+00:00"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def forget(store: Store, made: Made) -> None:
    """The run was years ago, and so was the last use of what it made."""
    made.run.record.started = LONG_AGO
    made.run.record.save(store)
    for path in (store.root / ".checked").iterdir():
        os.utime(path, (0, 0))


def names(garbage: list[maintenance.Garbage]) -> list[str]:
    return sorted(item.what for item in garbage)


def test_what_no_recent_run_refers_to_is_taken(store: Store) -> None:
    made = run_all(store)
    assert maintenance.unreferenced(store, days=30, grace_hours=0) == []
    forget(store, made)
    assert run_all(store, letter="O").outcomes == ["hit", "hit", "built"]
    garbage = maintenance.unreferenced(store, days=30)
    assert [item.artifact for item in garbage] == [made.artifacts["count"]]
    size = sum(path.stat().st_size for path in made.artifacts["count"].path.iterdir())
    assert maintenance.delete(store, garbage) == (1, size)
    assert len(list(store.artifacts())) == 3
    assert list((store.root / ".damaged").iterdir()) == []
    assert len(list((store.root / ".checked").iterdir())) == 3


@pytest.mark.parametrize("wrong", [{"days": -1.0}, {"days": float("nan")}, {"days": 1e12}])
def test_numbers_out_of_range_are_refused(store: Store, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="days must be 0 or more, and less than a century"):
        maintenance.unreferenced(store, **wrong)


def test_what_was_used_a_moment_ago_stays_whoever_used_it(store: Store) -> None:
    made = run_all(store)
    made.run.record.started = LONG_AGO
    made.run.record.save(store)
    assert maintenance.unreferenced(store, days=1) == []
    assert len(maintenance.unreferenced(store, days=1, grace_hours=0)) == 3


def test_what_the_cells_of_a_comparison_have_used_in_other_processes_stays(store: Store) -> None:
    with open_run(store, name="compare/all") as comparison:
        with open_run(store, name="cell", part_of=comparison.run_id):
            source = words(text="of a cell")
        assert [run.name for run in read_runs(store)] == ["compare/all"]  # a part is no run of its own
        assert maintenance.unreferenced(store, days=0, grace_hours=0) == []
        words(text="of a cell")
    assert not (store.root / "runs" / ".parts" / comparison.run_id).exists()
    assert [item.artifact for item in maintenance.unreferenced(store, days=0, grace_hours=0)] == [source]


@pytest.mark.parametrize("content", ["{", "[]", '{"run_id": "a"}', "\udcff"])
def test_a_record_that_cannot_be_read_stops_it(store: Store, content: str) -> None:
    forget(store, run_all(store))
    path = store.root / "runs" / "torn.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(StoreError, match=rf"{path} is damaged: .*nothing is removed\n.*delete it"):
        maintenance.unreferenced(store, days=0)
    assert len(list(store.artifacts())) == 3


def test_what_a_run_has_come_to_need_since_it_was_listed_stays(store: Store) -> None:
    forget(store, run_all(store))
    garbage = maintenance.unreferenced(store, days=1)
    assert len(garbage) == 3
    with open_run(store, name="mine"):
        words(text="hello all")
    assert maintenance.delete(store, garbage)[0] == 2
    assert [each.stage for each in store.artifacts()] == ["words"]


def hold(home: str, stage: str, key: str, ready: "multiprocessing.synchronize.Event") -> None:
    store = Store(Path(home))
    with store.lock(store.artifact(stage, key), print):
        ready.set()
        time.sleep(60)


def test_what_another_process_holds_stays(store: Store) -> None:
    made = run_all(store)
    forget(store, made)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    held = made.artifacts["words"]
    process = context.Process(target=hold, args=(str(store.root), held.stage, held.key, ready))
    process.start()
    try:
        assert ready.wait(60)
        garbage = maintenance.unreferenced(store, days=1)
        assert maintenance.delete(store, garbage)[0] == 2
        assert [each.stage for each in store.artifacts()] == ["words"]
    finally:
        process.kill()
        process.join()
    assert maintenance.delete(store, garbage)[0] == 1


def test_two_at_once_take_each_thing_once(store: Store) -> None:
    forget(store, run_all(store))
    one, other = (maintenance.unreferenced(store, days=1) for _ in range(2))
    assert maintenance.delete(store, one)[0] + maintenance.delete(store, other)[0] == 3
    assert list(store.artifacts()) == []


def test_a_run_that_goes_on_keeps_what_it_has_used_whatever_the_days(store: Store) -> None:
    with open_run(store, name="mine"):
        words(text="hello all")
        garbage = maintenance.unreferenced(store, days=0, grace_hours=0)
        assert garbage == []
    assert names(maintenance.unreferenced(store, days=0, grace_hours=0)) == ["words"]


def test_what_dead_builds_have_left_is_listed_and_taken(store: Store) -> None:
    made = run_all(store)
    committed, never = made.artifacts["upper"], store.artifact("upper", "0" * 32)
    for artifact in (committed, never):
        store.checkpoint_dir(artifact).mkdir()
        (store.checkpoint_dir(artifact) / "shard.txt").write_text("12345")
    (store.root / ".staging" / f"upper-{never.key}-abc").mkdir()
    written_now = partial_of(store.root / "runs" / "mine-1.json")
    dead = written_now.with_name(written_now.name.replace(f"-{os.getpid()}.", "-999999999."))
    elsewhere = written_now.with_name(".mine-1.json.another.node-999999999.partial")  # where it may live
    for path in (dead, written_now, elsewhere):
        path.write_text("{")
    os.utime(dead, (0, 0))
    flip(made.artifacts["words"].path / "words.txt")
    assert len(list(maintenance.verify(store))) == 1
    found = maintenance.unreferenced(store, days=30)
    assert names(found) == [".checkpoints", ".staging", "runs"]  # of a finished stage; the others may yet be needed
    later = maintenance.unreferenced(store, days=0, grace_hours=0)
    assert names([item for item in later if item.what.startswith((".", "runs"))]) == [
        ".checkpoints",
        ".checkpoints",
        ".damaged",
        ".staging",
        "runs",
    ]
    maintenance.delete(store, later)
    assert list((store.root / ".checkpoints").iterdir()) == []
    assert list((store.root / ".staging").iterdir()) == []
    assert list((store.root / ".damaged").iterdir()) == []
    assert sorted((store.root / "runs").glob(".*.partial")) == sorted([written_now, elsewhere])


def test_what_a_build_is_at_is_nobodys_garbage(store: Store) -> None:
    artifact = store.artifact("upper", "0" * 32)
    with store.lock(artifact, print), store.staging(artifact):
        store.checkpoint_dir(artifact).mkdir()
        assert maintenance.unreferenced(store, days=0, grace_hours=0) == []
    assert names(maintenance.unreferenced(store, days=0, grace_hours=0)) == [".checkpoints"]


def test_a_run_is_alive_while_its_lock_is_held_wherever_it_runs(store: Store) -> None:
    record = RunRecord.start("mine", {})
    record.pid, record.process_started = 999_999_999, "on another machine"
    record.save(store)
    assert read_runs(store)[0].status == "crashed"
    with record.going_on(store):
        assert read_runs(store)[0].status == "running"
    assert read_runs(store)[0].status == "crashed"


def test_what_a_run_uses_while_the_runs_are_asked_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the records and the list: the run was recorded too late for the one, and used in between."""
    forget(store, run_all(store))
    asked = maintenance._kept

    def run_again(store: Store, days: float) -> set[str]:
        kept = asked(store, days)
        assert set(run_all(store).outcomes) == {"hit"}
        return kept

    monkeypatch.setattr(maintenance, "_kept", run_again)
    garbage = maintenance.unreferenced(store, days=1, grace_hours=0)
    assert maintenance.delete(store, garbage) == (0, 0)
    assert len(list(store.artifacts())) == 3


def test_a_use_is_recorded_before_it_shows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    touch, seen = Store.touch, []

    def touched(self: Store, artifact: Artifact) -> None:
        seen.append(artifact.key in {stage.key for run in read_runs(self) for stage in run.stages})
        touch(self, artifact)

    monkeypatch.setattr(Store, "touch", touched)
    run_all(store)
    assert seen == [True, True, True]
