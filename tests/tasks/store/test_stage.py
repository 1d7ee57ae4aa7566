"""Stages over a store: hit, build, wait, damaged; keys over settings, inputs and code; what a failure leaves."""

import errno
import json
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tasks.engine.settings import RuntimeSettings
from tasks.store import maintenance
from tasks.store.artifacts import MANIFEST, Artifact, Store, StoreError
from tasks.store.keys import difference, key_record
from tasks.store.progress import NullReporter
from tasks.store.runs import RunRecord, StageRun, read_runs
from tasks.store.stage import Build, Run, open_run, stage, trains

BUILT: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Settings:
    rate: float = 1.0
    name: str = "a"


@stage
def first(build: Build, settings: Settings, seed: int) -> None:
    BUILT.append("first")
    (build.dir / "numbers.txt").write_text(f"{settings.rate} {seed}\n")
    (build.dir / "more").mkdir()
    (build.dir / "more" / "text.txt").write_text("text")
    build.record(tokens=3)


@stage
def second(build: Build, source: Artifact, others: dict[str, Artifact]) -> None:
    BUILT.append("second")
    text = (source.path / "numbers.txt").read_text()
    (build.dir / "sum.txt").write_text(text + str(len(others)))


class Listener(NullReporter):
    def __init__(self) -> None:
        self.outcomes: list[tuple[str, str]] = []
        self.warnings: list[str] = []

    def stage_finished(self, stage: StageRun) -> None:
        self.outcomes.append((stage.stage, stage.outcome))

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    BUILT.clear()
    return Store(tmp_path / "home")


def both(store: Store, rate: float = 1.0, *, planning: bool = False) -> tuple[Run, Listener, Artifact]:
    listener = Listener()
    with open_run(store, name="mine", reporter=listener, planning=planning) as run:
        one = first(settings=Settings(rate=rate), seed=0)
        two = second(source=one, others={"again": one})
    return run, listener, two


def test_a_second_run_builds_nothing(store: Store) -> None:
    _, built, artifact = both(store)
    run, hit, again = both(store)
    assert built.outcomes == [("first", "built"), ("second", "built")]
    assert hit.outcomes == [("first", "hit"), ("second", "hit")]
    assert BUILT == ["first", "second"]
    assert again == artifact
    assert (artifact.path / "sum.txt").read_text() == "1.0 0\n1"
    assert [each.outcome for each in run.stages] == ["hit", "hit"]


def test_a_manifest_says_what_the_artifact_is(store: Store) -> None:
    _, _, artifact = both(store)
    first_key = json.loads((artifact.path / MANIFEST).read_text())["key_record"]["inputs"]["source"]
    manifest = store.artifact("first", first_key).manifest()
    assert manifest.files["numbers.txt"].bytes == 6
    assert set(manifest.files) == {"numbers.txt", "more/text.txt"}
    assert manifest.stats == {"tokens": 3}
    assert manifest.key_record["settings"] == {"settings": {"rate": 1.0, "name": "a"}, "seed": 0}
    assert artifact.manifest().key_record["inputs"] == {"source": first_key, "others.again": first_key}
    assert manifest.versions["torch"]


def test_a_setting_changes_its_stage_and_what_follows(store: Store) -> None:
    both(store)
    plan, _, _ = both(store, rate=2.0, planning=True)
    assert [(row.stage, row.status, row.why) for row in plan.plan] == [
        ("first", "miss", "setting: settings.rate 1.0 → 2.0"),
        ("second", "miss", "input: others.again; input: source"),
    ]
    assert both(store, rate=1, planning=True)[0].plan[0].status == "hit"  # 1 is 1.0 in a field of floats
    assert len(read_runs(store)) == 1  # a plan is no run


def test_the_nearest_artifact_explains_a_miss(store: Store) -> None:
    with open_run(store, name="mine"):
        first(settings=Settings(rate=5.0, name="b"), seed=9)
        first(settings=Settings(rate=2.0), seed=0)
    plan, _, _ = both(store, rate=3.0, planning=True)
    assert plan.plan[0].why == "setting: settings.rate 2.0 → 3.0"
    assert plan.plan[1].why == "nothing built yet"


def test_what_has_no_canonical_form_is_refused(store: Store) -> None:
    with open_run(store, name="mine"), pytest.raises(TypeError, match="seed cannot be part of a stage's key: object"):
        first(settings=Settings(), seed=object())


def test_what_is_told_later_leaves_keys_alone_at_its_default() -> None:
    @dataclass(frozen=True)
    class Grown(Settings):
        more: int = field(default=3, metadata={"later": True})

    def before(build: Build, settings: Settings) -> None: ...
    def after(build: Build, settings: Settings, extra: str = "") -> None: ...

    old = key_record("s", before, {"settings": Settings(name="x")})
    same = key_record("s", after, {"settings": Grown(name="x"), "extra": ""})
    assert (old["settings"], old["inputs"]) == (same["settings"], same["inputs"])
    other = key_record("s", after, {"settings": Grown(name="x", more=4), "extra": "e"})
    assert difference(old, other)[:2] == ['setting: extra null → "e"', "setting: settings.more null → 4"]


def test_outside_a_run_a_stage_does_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="outside open_run"):
        first(settings=Settings(), seed=0)


@pytest.mark.parametrize("damage", ["truncate", "remove", "no manifest", "torn manifest"])
def test_damage_is_noticed_named_moved_aside_and_built_anew(store: Store, damage: str) -> None:
    _, _, artifact = both(store)
    name = {"truncate": "sum.txt", "remove": "sum.txt"}.get(damage, MANIFEST)
    path = artifact.path / name
    if damage in ("remove", "no manifest"):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    plan, _, _ = both(store, planning=True)
    assert [row.status for row in plan.plan] == ["hit", "damaged"]
    assert name in plan.plan[1].why
    _, listener, _ = both(store)
    assert listener.outcomes == [("first", "hit"), ("second", "built")]
    assert name in listener.warnings[0]
    aside = list((store.root / ".damaged").iterdir())
    assert len(aside) == 1
    assert str(aside[0]) in listener.warnings[0]
    assert store.damage(artifact) is None
    assert list(maintenance.verify(store)) == []


@stage
def failing(build: Build, kind: str) -> None:
    (build.dir / "half.txt").write_text("half")
    if kind == "mistake":
        raise ValueError("that is wrong\ndo it right")
    if kind == "interrupt":
        raise KeyboardInterrupt
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("kind", "error"), [("mistake", ValueError), ("interrupt", KeyboardInterrupt), ("full", OSError)]
)
def test_a_failure_leaves_no_half_and_is_recorded_in_one_line(
    store: Store, kind: str, error: type[BaseException]
) -> None:
    with pytest.raises(error), open_run(store, name="mine"):
        failing(kind=kind)
    assert list(store.artifacts()) == []
    assert list((store.root / ".staging").iterdir()) == []
    record = read_runs(store)[-1]
    assert record.state == "failed"
    assert record.error is not None
    assert "\n" not in record.error


@stage
def large(build: Build) -> None:
    (build.dir / "large.bin").write_bytes(bytes(700_000))


def test_a_full_disk_is_one_error_and_the_next_run_works(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        store = Store(disk / "home")
        with pytest.raises(OSError, match="No space left"), open_run(store, name="mine"):
            large()
        assert list(store.artifacts()) == []
        assert list((store.root / ".staging").iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        with open_run(store, name="mine"):
            artifact = large()
        assert store.damage(artifact) is None
    finally:
        subprocess.run(["umount", disk], check=True)


@stage
def slow(build: Build, log: str) -> None:
    with Path(log).open("a") as file:
        file.write("built\n")
    time.sleep(0.5)
    (build.dir / "done.txt").write_text("done")


def ask_for_slow(home: str, log: str, outcomes: "multiprocessing.Queue[str]") -> None:
    with open_run(Store(Path(home)), name="racing") as run:
        slow(log=log)
    outcomes.put(run.stages[0].outcome)


def test_two_processes_that_want_one_key_build_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    outcomes: multiprocessing.Queue[str] = context.Queue()  # type: ignore[assignment]
    arguments = (str(tmp_path / "home"), str(tmp_path / "log"), outcomes)
    Store(tmp_path / "home")
    processes = [context.Process(target=ask_for_slow, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    found = sorted(outcomes.get(timeout=60) for _ in processes)
    assert found[0] == "built"
    assert found[1] in ("waited", "hit")
    assert (tmp_path / "log").read_text() == "built\n"


@pytest.mark.parametrize("name", ["artifacts", ".damaged", ".checkpoints"])
def test_a_store_over_two_disks_is_refused_before_anything_is_built(store: Store, name: str) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == store.root.stat().st_dev:
        pytest.skip("there is no second file system here")
    with TemporaryDirectory(dir=elsewhere) as other:
        (store.root / name).rmdir()
        (store.root / name).symlink_to(other)
        with pytest.raises(StoreError, match=r"lie on two disks\n.*set DISTILL_HOME") as caught:
            both(store)
        assert str(store.root / name) in str(caught.value)
        assert BUILT == []
        assert read_runs(store) == []


def test_what_another_process_commits_between_the_look_and_the_lock_is_a_hit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, others = Store.lock, []

    def late(self: Store, artifact: Artifact, waiting: Callable[[str], None]) -> AbstractContextManager[bool]:
        if not others:
            others.append("commits")  # before this lock is asked for, and has let go of it when it is
            with open_run(store, name="other"):
                first(settings=Settings(), seed=0)
        return lock(self, artifact, waiting)

    monkeypatch.setattr(Store, "lock", late)
    listener = Listener()
    with open_run(store, name="mine", reporter=listener):
        first(settings=Settings(), seed=0)
    assert BUILT == ["first"]
    assert listener.outcomes == [("first", "hit")]
    assert list((store.root / ".damaged").iterdir()) == []


def test_a_run_whose_process_is_gone_reads_as_crashed(store: Store) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    record = RunRecord.start("mine", {})
    assert record.status == "running"
    record.pid = gone.pid
    record.save(store)
    assert read_runs(store)[0].status == "crashed"
    (store.root / "runs" / "torn.json").write_text('{"run_id"')
    assert len(read_runs(store)) == 1


def test_what_a_killed_process_left_in_staging_goes_with_the_next_build(store: Store) -> None:
    plan, _, _ = both(store, planning=True)
    left = store.root / ".staging" / f"first-{plan.plan[0].key}-left"
    left.mkdir()
    (left / "half.txt").write_text("half")
    both(store)
    assert list((store.root / ".staging").iterdir()) == []


def test_runtime_settings_are_checked_and_in_no_key(store: Store) -> None:
    for wrong in ({"device": "tpu"}, {"threads": 0}, {"checkpoint_seconds": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RuntimeSettings(**wrong)  # type: ignore[arg-type]
    keys = []
    for runtime in (RuntimeSettings(), RuntimeSettings(threads=3, checkpoint_seconds=1.0, track=("wandb",))):
        with open_run(store, name="mine", runtime=runtime):
            keys.append(first(settings=Settings(), seed=0).key)
    assert keys[0] == keys[1]


def test_store_errors_are_a_users_mistakes() -> None:
    assert issubclass(StoreError, ValueError)


@trains()
@stage
def trained(build: Build, log: str) -> None:
    Path(log).write_text(str(time.monotonic()), encoding="utf-8")


def test_a_stage_that_trains_waits_for_whoever_still_writes_its_checkpoints(store: Store, tmp_path: Path) -> None:
    """The first rank of a run whose driver was killed: its key is free, and it has not quite ended."""
    log = tmp_path / "began"
    with open_run(store, name="plan", planning=True) as plan:
        artifact = trained(log=str(log))
    assert plan.plan[0].trains
    until = 0.0
    with open_run(store, name="dead") as dead:
        checkpoints = Build(dead, artifact, tmp_path, "trained", {}).checkpoints
    taken = threading.Event()

    def write_on() -> None:
        nonlocal until
        with checkpoints.alone():
            taken.set()
            time.sleep(0.4)
            until = time.monotonic()

    writer = threading.Thread(target=write_on)
    writer.start()
    taken.wait()
    with open_run(store, name="next"):
        trained(log=str(log))
    writer.join()
    assert float(log.read_text(encoding="utf-8")) >= until > 0
