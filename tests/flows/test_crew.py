"""Jobs side by side: what they raise arrives, and no process outlives its parent, at whatever moment that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows import crew
from flows.crew import Job, run_jobs
from tests.flows.stack.test_children import alive, eventually

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of processes in /proc")

# What a job does: sleep, compute where Python's own threads do not run, or still import
SLEEP = "time.sleep(60)"
COMPUTE = "sum(range(10**10))"  # one call into C that never lets go of the interpreter
IMPORT = "sys.path.insert(0, str(folder)); import slow_to_import"
PARENT = """
import signal, sys
from pathlib import Path
from flows.crew import Job, run_jobs
from tests.flows.test_crew import work
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell has started in the background
    folder = Path(sys.argv[1])
    run_jobs([Job(f"cell {i}", work, (folder, sys.argv[2])) for i in range(3)], 2, lambda: None)
"""


class Picky(Exception):
    """Cannot be made from its message alone, so it does not come out of a pickle."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def work(folder: Path, program: str) -> None:
    """Leave the pid, then do what `program` says."""
    (folder / str(os.getpid())).touch()
    exec(program, {"time": time, "sys": sys, "folder": folder})


def square(folder: Path, number: int) -> None:
    (folder / f"{number}").write_text(str(number**2))


def fail(error: str) -> None:
    if error == "picky":
        raise Picky("a", "b")
    raise ValueError(error)


def kill_itself(number: int) -> None:
    os.kill(os.getpid(), number)


@contextmanager
def working(folder: Path, program: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A parent in a process group of its own, and its two processes at work."""
    script = folder / "parent.py"
    script.write_text(PARENT)
    begun = folder / "pids"
    begun.mkdir()
    (begun / "slow_to_import.py").write_text("import time\ntime.sleep(60)\n")
    parent = subprocess.Popen(
        [sys.executable, str(script), str(begun), program],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert eventually(lambda: len(pids_in(begun)) == 2, 60)
        yield parent, pids_in(begun)
    finally:
        for pid in [parent.pid, *pids_in(begun)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        parent.communicate()


def pids_in(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def test_every_job_is_done_and_told_once(tmp_path: Path) -> None:
    told: list[int] = []
    run_jobs([Job(f"{i}", square, (tmp_path, i)) for i in range(5)], 2, lambda: told.append(1))
    assert sum(told) == 5
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {str(i): str(i**2) for i in range(5)}


@pytest.mark.parametrize(
    ("raised", "expected", "message"), [("no\nsuch", ValueError, "no\nsuch"), ("picky", RuntimeError, "Picky: a b")]
)
def test_what_a_job_raises_is_raised_with_its_traceback(raised: str, expected: Any, message: str) -> None:
    with pytest.raises(expected) as caught:
        run_jobs([Job("it", fail, (raised,))], 1, lambda: None)
    assert str(caught.value) == message
    assert "in fail" in caught.value.__notes__[0]


@pytest.mark.parametrize(("number", "memory"), [(signal.SIGKILL, True), (signal.SIGSEGV, False)])
def test_a_job_whose_process_is_killed_is_named_and_the_others_end(
    number: signal.Signals, memory: bool, tmp_path: Path
) -> None:
    jobs = [Job("the other", work, (tmp_path, SLEEP)), Job("js, seed=1", kill_itself, (number,))]
    with pytest.raises(ChildProcessError) as caught:
        run_jobs(jobs, 2, lambda: None)
    wrong, to_do = str(caught.value).splitlines()
    assert wrong.startswith(f"the process of js, seed=1 was ended by {number.name}")
    assert ("out of memory" in wrong) == memory
    assert "workers=1" in to_do
    assert not any(alive(pid) for pid in pids_in(tmp_path))


@pytest.mark.parametrize("program", [SLEEP, COMPUTE, IMPORT])
def test_ctrl_c_ends_all_at_once_and_no_process_says_a_word(program: str, tmp_path: Path) -> None:
    with working(tmp_path, program) as (parent, pids):
        os.killpg(parent.pid, signal.SIGINT)
        _, said = parent.communicate(timeout=50)
        assert said.count("Traceback") == 1  # the parent's own: here nothing catches its KeyboardInterrupt
        assert said.rstrip().endswith("KeyboardInterrupt")
        assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("program", [SLEEP, COMPUTE, IMPORT])
def test_processes_end_with_a_parent_that_is_killed(program: str, number: signal.Signals, tmp_path: Path) -> None:
    with working(tmp_path, program) as (parent, pids):
        os.kill(parent.pid, number)
        _, said = parent.communicate(timeout=50)
        assert eventually(lambda: not any(alive(pid) for pid in pids))
        assert said == ""


def test_elsewhere_than_on_linux_a_thread_does_it(tmp_path: Path) -> None:
    quiet = "import flows.crew, sys; sys.platform = 'elsewhere'; flows.crew._end_with_parent(); "
    unset = "import ctypes, signal; ctypes.CDLL(None).prctl(1, 0); "
    with working(tmp_path, unset + quiet + SLEEP) as (parent, pids):
        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate(timeout=50)
        assert eventually(lambda: not any(alive(pid) for pid in pids))


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """Whatever the shell has made of it that started the tests."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_while_processes_start_is_kept_back_until_they_have() -> None:
    started = []

    @crew._ctrl_c_is_ours()
    def start() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        started.append(True)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert started == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
