"""A device is one run's at a time, whatever the processes, stores and users are that want it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from flows.outlines import Outline, execute
from tasks.compute import device_lock
from tasks.compute.device_lock import Device, devices_here, own_devices
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import Reporter
from tests.tasks.store.tiny_stages import Listener, upper, words

PROJECT = Path(__file__).parents[3]
ONE_CPU = [Device("cpu", "one")]  # named as torch can compute on it here, and limited as a GPU is
TWO = [Device("cuda:0", "one"), Device("cuda:1", "other")]
HOLDER = """
import json, os, sys
from tasks.compute import device_lock
from tasks.compute.device_lock import Device, own_devices
if len(sys.argv) > 3:
    os.setuid(int(sys.argv[3]))
found = [Device(*each) for each in json.loads(sys.argv[1])]
with own_devices(found, lambda text: print(text, flush=True), int(sys.argv[2])) as devices:
    print("has", *(each.name for each in devices), flush=True)
    sys.stdin.readline()
"""
RUNNER = """
import sys
from pathlib import Path
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import Reporter
from tasks.store.progress import PlainReporter
from tests.tasks.compute.test_device_lock import run_here
run_here(Store(Path(sys.argv[1])), PlainReporter())
"""


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the locks of this test and of the processes that it starts."""
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setenv("DISTILL_LOCKS", str(folder))
    return folder


class Process:
    """Another process that holds one of the devices, once it can."""

    device = ""

    def __init__(self, devices: list[Device], together: int = 1, *, user: int | None = None) -> None:
        given = json.dumps([[each.name, each.id] for each in devices])
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, given, str(together), *([] if user is None else [str(user)])],
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        self._process.send_signal(number)
        self._process.communicate()


@contextmanager
def processes(*devices: list[Device]) -> Iterator[list[Process]]:
    """Processes that were started one after the other, each when the one before had said something."""
    with ExitStack() as stack:
        started = []
        for each in devices:
            started.append(Process(each))
            stack.callback(started[-1].end)
        yield started


def pipeline(text: str) -> Artifact:
    """Two stages that cost nothing."""
    return upper(source=words(text=text))


def run_here(store: Store, reporter: Reporter) -> None:
    """A run on a machine with one device."""
    outline = Outline("flows/distill.py:distill", pipeline, lambda _: [])
    parameters = {"text": "hello", "runtime": RuntimeSettings()}
    execute(outline, store, "mine", parameters, reporter, find=lambda _: ONE_CPU)


def free(device: Device) -> bool:
    """Whether nobody has it."""

    def give_up(text: str) -> None:
        raise TimeoutError(text)

    try:
        with own_devices([device], give_up):
            return True
    except TimeoutError:
        return False


def num_open() -> int:
    """Files that this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


def test_every_process_has_a_device_of_its_own_and_the_next_one_waits_and_says_so() -> None:
    with processes(TWO, TWO) as (first, second):
        first.device, second.device = first.says(), second.says()
        assert {first.device, second.device} == {"has cuda:0", "has cuda:1"}
        with processes(TWO) as (third,):
            one, other = sorted((first, second), key=lambda each: each.device)
            taken = f"cuda:0 (process {one.pid}), cuda:1 (process {other.pid})"
            assert third.says() == f"other runs compute on {taken}; waiting"
            first.end(signal.SIGKILL)
            assert third.says().endswith(" is free; going on")
            assert third.says().startswith("has cuda:")


def test_a_device_that_is_named_is_waited_for_though_another_one_is_free() -> None:
    with processes(TWO[:1]) as (holder,):
        assert holder.says() == "has cuda:0"
        with processes(TWO[:1]) as (waiting,):
            assert waiting.says() == f"other runs compute on cuda:0 (process {holder.pid}); waiting"
            assert free(TWO[1])


def test_what_takes_two_in_a_row_waits_for_both_and_holds_neither_meanwhile() -> None:
    three = [*TWO, Device("cuda:2", "third")]
    with processes(TWO[1:]) as (holder,):
        assert holder.says() == "has cuda:1"
        waiting = Process(three, 2)
        try:
            assert waiting.says() == f"other runs compute on cuda:1 (process {holder.pid}); waiting"
            assert free(three[0])
            assert free(three[2])
            with own_devices(three[:1], print):
                holder.end()
                assert waiting.says() == "cuda:1, cuda:2 are free; going on"
                assert waiting.says() == "has cuda:1 cuda:2"
                assert not free(three[1])
                assert not free(three[2])
        finally:
            waiting.end()
    assert free(three[1])
    assert free(three[2])


@pytest.mark.parametrize(
    ("wanted", "together", "found"),
    [
        ("auto", 1, "0123"),
        ("cuda", 2, "0123"),
        ("cuda:1", 1, "1"),
        ("cuda:1", 2, "12"),
        ("cuda:7", 2, ""),
        ("cpu", 2, ""),
    ],
)
def test_a_device_that_is_named_is_the_first_of_those_that_are_taken(
    monkeypatch: pytest.MonkeyPatch, wanted: str, together: int, found: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: SimpleNamespace(uuid=f"id {number}"))
    assert devices_here(wanted, together) == [Device(f"cuda:{each}", f"id {each}") for each in found]


@pytest.mark.parametrize(("wanted", "found"), [("auto", ["mps"]), ("mps", ["mps"]), ("cuda", []), ("cpu", [])])
def test_a_macs_gpu_is_one_device(monkeypatch: pytest.MonkeyPatch, wanted: str, found: list[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert devices_here(wanted) == [Device(each, each) for each in found]


def test_who_waits_keeps_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look a second for hours would come to the most files that a process may have."""
    opened: list[int] = []

    def looked(_: float) -> None:
        opened.append(num_open())
        if len(opened) == 4:
            raise TimeoutError

    with processes(TWO[:1]) as (holder,):
        assert holder.says() == "has cuda:0"
        monkeypatch.setattr(time, "sleep", looked)
        with pytest.raises(TimeoutError), own_devices(TWO[:1], print):
            pass
    assert len(set(opened)) == 1


def test_an_empty_name_of_the_folder_is_none(locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(device_lock, "FOLDER", str(tmp_path / "tmp"))
    monkeypatch.setenv("DISTILL_LOCKS", "")
    monkeypatch.chdir(tmp_path)
    assert free(TWO[0])
    assert [each.parent.name for each in tmp_path.rglob("distill-*")] == ["tmp"]


def test_a_run_holds_all_devices_of_its_teacher_and_shows_each(tmp_path: Path) -> None:
    """With Ray one alone: the others are for Ray to give out."""
    outline = Outline("flows/distill.py:distill", pipeline, lambda _: [])
    for runtime, named in ((RuntimeSettings(teacher_devices=2), TWO), (RuntimeSettings(), TWO[:1])):
        shown: list[Device] = []

        @contextmanager
        def beside(device: Device, shown: list[Device] = shown) -> Iterator[None]:
            shown.append(device)
            assert not free(device)
            yield

        parameters = {"text": runtime.teacher_devices * "hello", "runtime": runtime}
        execute(outline, Store(tmp_path), "mine", parameters, Listener(), beside=beside, find=lambda _: TWO)
        assert shown == named


def test_every_user_can_see_the_lock_whatever_the_umask_of_the_first(locks: Path) -> None:
    before = os.umask(0o077)
    try:
        assert free(TWO[0])
    finally:
        os.umask(before)
    (made,) = locks.iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == 0o755


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_another_user_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder like /tmp, where Linux lets nobody open another user's file for writing."""
    with TemporaryDirectory() as folder:  # not under pytest's own, which is closed to others
        locks = Path(folder)
        locks.chmod(0o1777)
        monkeypatch.setenv("DISTILL_LOCKS", folder)
        with own_devices(TWO[:1], print):
            other = Process(TWO[:1], user=65534)
            try:
                assert other.says() == f"other runs compute on cuda:0 (process {os.getpid()}); waiting"
            finally:
                other.end()
        (made,) = locks.iterdir()
        os.chown(made, 65534, 65534)
        assert free(TWO[0])


def test_a_lock_that_is_being_made_by_another_user_is_looked_at_again(
    locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making, under a umask that closes it to others, and its opening to all."""
    opened, refusals = os.open, 3

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        nonlocal refusals
        if Path(path).parent == locks and refusals > 0:
            refusals -= 1
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert free(TWO[0])
    refusals = 10_000
    with pytest.raises(ValueError, match=r"lock .*/distill-one cannot be taken: permission denied\nname a folder"):
        free(TWO[0])


def test_a_lock_that_is_removed_before_it_is_taken_is_made_again(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by what cleans /tmp. Whoever comes later would make another directory, lock it, and have the device too."""
    flock, removals = fcntl.flock, 2

    def too_late(descriptor: int, how: int) -> None:
        nonlocal removals
        if removals > 0:
            removals -= 1
            (locks / "distill-one").rmdir()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", too_late)
    opened = num_open()
    with own_devices(TWO[:1], print):
        assert not free(TWO[0])
    assert free(TWO[0])
    assert num_open() == opened


def test_a_folder_that_cannot_be_used_is_named(locks: Path) -> None:
    locks.rmdir()
    with (
        pytest.raises(ValueError, match=r"lock .*/distill-one cannot be taken: no such file") as caught,
        own_devices(TWO, print),
    ):
        pass
    assert "DISTILL_LOCKS=" in str(caught.value).splitlines()[1]


def test_a_link_in_the_place_of_a_lock_is_not_followed(
    locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it does not pass"))
    (tmp_path / "elsewhere").mkdir()
    (locks / "distill-one").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="cannot be taken"), own_devices(TWO, print):
        pass


def test_a_run_on_the_cpu_needs_none() -> None:
    assert devices_here("cpu") == []
    with own_devices([], print) as devices:
        assert not devices


def test_a_run_waits_before_it_computes_anything_and_what_is_there_already_needs_no_device(tmp_path: Path) -> None:
    """A run on a device of which there is one, as another process with a store of its own has it: here, this one."""
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-c", RUNNER, str(home)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, bufsize=1) as run:
        assert run.stdout is not None
        with own_devices(ONE_CPU, print):
            assert run.stdout.readline() == f"WARNING: other runs compute on cpu (process {os.getpid()}); waiting\n"
            time.sleep(1)
            assert list((home / "artifacts").rglob("*")) == []
        assert run.stdout.readline() == "WARNING: cpu is free; going on\n"
        assert "upper: built" in run.stdout.read()
    assert free(ONE_CPU[0])
    listener = Listener()
    with own_devices(ONE_CPU, print):
        run_here(Store(home), listener)
    assert listener.outcomes == [("words", "hit"), ("upper", "hit")]
    assert listener.warnings == []
