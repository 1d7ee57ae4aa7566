"""Supervised children: their groups end with them, and a killed supervisor's children do not survive its successor."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.stack import children
from flows.stack.children import Child, Nursery

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of processes in /proc")

PARENT_OF_A_SLEEPER = """
import subprocess, sys, time
sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(sleeper.pid, flush=True)
time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""


def child(tmp_path: Path, program: str) -> Child:
    return Child("it", [sys.executable, "-c", program], env=os.environ, cwd=tmp_path, log=tmp_path / "logs" / "it.log")


def eventually(condition: Callable[[], bool], seconds: float = 50.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_output_goes_to_the_log_and_the_exit_code_is_known(tmp_path: Path) -> None:
    it = child(tmp_path, "print('one'); print('two'); raise SystemExit(3)")
    assert (it.exit_code(), it.last_words()) == (None, "")
    it.start()
    assert eventually(lambda: it.exit_code() == 3)
    assert it.last_words(1) == "two"


def test_stopping_a_child_ends_its_whole_group(tmp_path: Path) -> None:
    it = child(tmp_path, PARENT_OF_A_SLEEPER)
    it.start()
    assert eventually(lambda: it.last_words().isdigit())
    grandchild = int(it.last_words())
    assert alive(grandchild)
    it.stop()
    assert it.exit_code() == -signal.SIGTERM
    assert eventually(lambda: not alive(grandchild))


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    it = child(tmp_path, STUBBORN)
    it.start()
    assert eventually(lambda: it.last_words() == "deaf")
    it.stop(grace_seconds=0.2)
    assert it.exit_code() == -signal.SIGKILL


def test_back_off_doubles_up_to_a_limit_and_starts_over_after_good_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = child(tmp_path, "pass")
    it.start()
    assert [it.back_off() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    monkeypatch.setattr(children, "HEALTHY_SECONDS", 0.0)
    assert it.back_off() == 1
    it.stop()


def test_a_long_log_is_put_aside_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LOG_BYTES", 10)
    it = child(tmp_path, "print('x' * 20)")
    for _ in range(2):
        it.start()
        assert eventually(lambda: it.exit_code() == 0)
    assert (tmp_path / "logs" / "it.log").read_text() == (tmp_path / "logs" / "it.log.1").read_text()


def test_a_killed_supervisors_children_are_ended_by_the_next_one(tmp_path: Path) -> None:
    supervisor = f"""
import os, sys, time
from pathlib import Path
from flows.stack.children import Child, Nursery
root = Path({str(tmp_path)!r})
child = Child("it", [sys.executable, "-c", "import time; time.sleep(60)"], env=os.environ, cwd=root, log=root / "log")
with Nursery(root / "children.lock") as nursery:
    nursery.start(child)
    print("started", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", supervisor], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
    process.kill()
    process.wait()
    left, _ = json.loads((tmp_path / "children.lock").read_text())["it"]
    assert alive(left)
    with Nursery(tmp_path / "children.lock"):
        assert not alive(left)
        assert (tmp_path / "children.lock").read_text() == "{}"


def test_a_group_whose_number_is_anothers_by_now_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a lock that nobody here can free is said, not waited for."""
    monkeypatch.setattr(children, "UNLOCK_SECONDS", 0.2)
    monkeypatch.setattr(children, "GRACE_SECONDS", 0.2)
    path = tmp_path / "children.lock"
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as stranger,
        path.open("w") as held,
    ):
        held.write(json.dumps({"worker": [stranger.pid, "17"]}))
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="not of this machine, that hold"), Nursery(path):
            pass
        assert stranger.poll() is None
        stranger.kill()
