"""Supervised child processes: started in a group of their own, restarted with back-off, never left behind.

Every child inherits one locked file descriptor. The kernel frees the lock when the last child is gone, however it
ends, so a supervisor that was killed leaves a sign that its successor can read: the lock is taken, and the file says
which process groups to end.
"""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from tasks.store.runs import process_start

GRACE_SECONDS = 10.0
LONGEST_BACK_OFF_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
LOG_BYTES = 10 * 2**20
UNLOCK_SECONDS = 1.0


class Child:
    """One program that should be running: a process group of its own, its output appended to `log`."""

    def __init__(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.name = name
        self.log = log
        self._argv, self._env, self._cwd = list(argv), dict(env), cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._failures = 0

    def start(self, lock: IO[str] | None = None) -> int:
        """Start the program and return its pid, which is its process group too."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv,
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C reaches the supervisor only, which stops all in order
                pass_fds=() if lock is None else (lock.fileno(),),
            )
        self._started = time.monotonic()
        return self._process.pid

    def exit_code(self) -> int | None:
        """The exit code of the program, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def back_off(self) -> float:
        """Seconds to wait before the next start: 1, 2, 4 … 30, and 1 again after a minute of good health."""
        healthy = time.monotonic() - self._started > HEALTHY_SECONDS
        self._failures = 1 if healthy else self._failures + 1
        return float(min(2 ** (self._failures - 1), LONGEST_BACK_OFF_SECONDS))

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Ask the whole group to end, then make it."""
        if self._process is not None:
            end_groups([self._process.pid], grace_seconds, reap=self._process)

    def last_words(self, num_lines: int = 5) -> str:
        """The end of the log, for a message about a child that would not start."""
        with suppress(FileNotFoundError):
            lines = [
                line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
            ]
            return "\n".join(lines[-num_lines:])
        return ""


def end_groups(groups: Sequence[int], grace_seconds: float, reap: subprocess.Popen[bytes] | None = None) -> None:
    """SIGTERM the process groups, and SIGKILL what is left of them after `grace_seconds`."""
    for group in groups:
        _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline:
        if reap is not None:
            reap.poll()  # a zombie still counts as a member of its group
        if not any(_signal_group(group, 0) for group in groups):
            return
        time.sleep(0.05)
    for group in groups:
        _signal_group(group, signal.SIGKILL)
    if reap is not None:
        reap.wait()


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; False if nothing is left of it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class Nursery:
    """The file that running children keep locked: it lists their process groups, and when each began."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._file = path, path.open("a+", encoding="utf-8")

    def __enter__(self) -> "Nursery":
        if not self._locked():  # a supervisor was killed; its children were not
            ours = [group for group, began in self._recorded().values() if process_start(group) in (began, "")]
            end_groups(ours, GRACE_SECONDS)
            if not self._locked():
                self._file.close()
                raise ValueError(
                    f"an earlier `distill up` has left processes, not of this machine, that hold {self._path}\n"
                    "end them where they run, or use another DISTILL_HOME"
                )
        self._record({})
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def start(self, child: Child) -> None:
        """Start `child`, which holds the lock with us, and write its process group down."""
        group = child.start(self._file)
        self._record({**self._recorded(), child.name: (group, process_start(group))})

    def _locked(self) -> bool:
        """Take the lock, waiting a moment for processes that have just been ended to release it."""
        deadline = time.monotonic() + UNLOCK_SECONDS
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(0.05)
        return False

    def _recorded(self) -> dict[str, tuple[int, str]]:
        """Name → process group and the start time of its first process, since the number may be another's by now."""
        self._file.seek(0)
        return {name: (group, began) for name, (group, began) in json.loads(self._file.read() or "{}").items()}

    def _record(self, groups: dict[str, tuple[int, str]]) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(groups))
        self._file.flush()
