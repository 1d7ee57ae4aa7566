"""Checkpoints: whole or not there, the last two kept, a corrupt one told and passed over."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

import pytest

from tasks.store.artifacts import Store, StoreError
from tasks.store.checkpoints import Checkpoints


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def make(store: Store, warnings: list[str]) -> Callable[[float], Checkpoints]:
    return lambda seconds: Checkpoints(store, store.root / ".checkpoints" / "llmr-key", seconds, warnings.append)


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, lambda directory: (directory / "state.txt").write_text(f"step {step}") and None)


def test_the_newest_is_found_and_two_are_kept(make: Callable[[float], Checkpoints]) -> None:
    checkpoints = make(0)
    assert checkpoints.latest() is None
    for step in (1, 2, 10):
        save(checkpoints, step)
    latest = make(0).latest()
    assert latest is not None
    assert latest[0] == 10
    assert (latest[1] / "state.txt").read_text() == "step 10"
    assert [path.name for path in sorted(checkpoints.dir.iterdir())] == ["step-0000000002", "step-0000000010"]


def test_a_process_that_still_writes_is_waited_for_and_told_of(
    make: Callable[[float], Checkpoints], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.store.checkpoints.SAY_SECONDS", 0.1)
    done: list[str] = []

    def end() -> None:
        done.append("the one of before")
        before.close()

    with ExitStack() as before:
        before.enter_context(make(0).alone())
        Timer(0.5, end).start()
        with make(0).alone():
            done.append("the next")
    assert done == ["the one of before", "the next"]
    assert [text.partition(" to ")[0] for text in warnings] == ["a process of before still writes"]


def test_the_newest_is_known_without_a_look_inside(make: Callable[[float], Checkpoints]) -> None:
    checkpoints = make(0)
    assert checkpoints.newest() == 0
    for step in (9, 10):
        save(checkpoints, step)
    (checkpoints.dir / "step-0000000010" / "state.txt").write_text("other")
    assert checkpoints.newest() == 10


def test_a_failed_write_leaves_the_ones_before(make: Callable[[float], Checkpoints]) -> None:
    checkpoints = make(0)
    save(checkpoints, 1)

    def fail(directory: Path) -> None:
        (directory / "state.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.save(2, fail)
    assert [path.name for path in checkpoints.dir.iterdir()] == ["step-0000000001"]


def test_what_a_kill_left_half_written_is_no_checkpoint(make: Callable[[float], Checkpoints]) -> None:
    checkpoints = make(0)
    save(checkpoints, 1)
    partial = checkpoints.dir / "partial"
    partial.mkdir()
    (partial / "state.txt").write_text("half")
    latest = make(0).latest()
    assert latest is not None
    assert latest[0] == 1
    save(make(0), 2)
    assert not partial.exists()


@pytest.mark.parametrize("damage", ["content", "missing", "hashes"])
def test_a_corrupt_one_is_named_and_the_one_before_is_used(
    make: Callable[[float], Checkpoints], warnings: list[str], store: Store, damage: str
) -> None:
    checkpoints = make(0)
    save(checkpoints, 1)
    save(checkpoints, 2)
    newest = checkpoints.dir / "step-0000000002"
    if damage == "content":
        (newest / "state.txt").write_text("step 3")
    elif damage == "missing":
        (newest / "state.txt").unlink()
    else:
        (newest / "hashes.json").write_text("{")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest[0] == 1
    assert "checkpoint step-0000000002 is corrupt" in warnings[0]
    assert len(list((store.root / ".damaged").iterdir())) == 1


def test_if_all_are_corrupt_the_run_says_so_and_the_next_one_starts_afresh(
    make: Callable[[float], Checkpoints],
) -> None:
    checkpoints = make(0)
    for step in (1, 2):
        save(checkpoints, step)
    for path in checkpoints.dir.glob("*/state.txt"):
        path.write_text("other")
    with pytest.raises(StoreError, match=r"every checkpoint .* was corrupt.*\nrun again"):
        checkpoints.latest()
    assert make(0).latest() is None


def test_they_fall_due_by_the_clock(make: Callable[[float], Checkpoints]) -> None:
    assert make(0).due()
    assert not make(3600).due()


def test_unfinished_work_goes_on_only_from_the_very_inputs_that_it_read(
    make: Callable[[float], Checkpoints], warnings: list[str]
) -> None:
    checkpoints = make(0)
    checkpoints.claim(["key"], {"source": "as it was"}, suspect=False)
    save(checkpoints, 1)
    make(0).claim(["key"], {"source": "as it was"}, suspect=False)
    assert checkpoints.latest() is not None
    make(0).claim(["key"], {"source": "built with other bytes"}, suspect=False)
    assert checkpoints.latest() is None
    save(checkpoints, 1)
    make(0).claim(["key"], {"source": "built with other bytes"}, suspect=True)
    assert checkpoints.latest() is None
    assert len(warnings) == 2
