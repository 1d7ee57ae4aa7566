"""Runs jobs in parallel, in child processes that cannot outlive their parent, whichever way it ends.

Nothing heavy is imported here: a child is bound to its parent before it loads what its first job needs (torch).
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from flows.output import streams

PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True)
class Job:
    """One call for a child process; `name` is how the job is called in the message when its process dies."""

    name: str
    function: Callable[..., object]
    arguments: tuple[Any, ...]


def run_jobs(jobs: Sequence[Job], num_processes: int, done: Callable[[], None]) -> None:
    """Run all jobs, `num_processes` at a time, and call `done` after each.

    Raises what a job raised, its traceback as a note, and ChildProcessError with the job's name if its process died. No
    child process is left when this returns or raises, Ctrl-C included.
    """
    waiting, crew = deque(jobs), list[_Member]()
    try:
        with _ctrl_c_is_ours():
            for _ in range(min(num_processes, len(jobs))):
                crew.append(_Member())
        for member in crew:
            member.give(waiting.popleft())
        while busy := {member.connection: member for member in crew if member.job is not None}:
            for connection in wait(list(busy)):
                member = busy[connection]  # type: ignore[index]
                member.take()
                done()
                if waiting:
                    member.give(waiting.popleft())
    finally:
        for member in crew:
            member.end()


class _Member:
    """A child process, and the job that it is doing."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.job: Job | None = None
        self._process = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()  # so that its death is the end of what we read

    def give(self, job: Job) -> None:
        self.job = job
        with suppress(BrokenPipeError):  # it died already: `take` says so
            self.connection.send_bytes(pickle.dumps((job.function, job.arguments)))

    def take(self) -> None:
        """Read the answer to the job in hand; raise what it says."""
        try:
            error: BaseException | None = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            error = self._death()
        self.job = None
        if error is not None:
            raise error

    def end(self) -> None:
        """Kill the process, which may be busy or still importing; the store survives that."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _death(self) -> ChildProcessError:
        self._process.join()
        code, name = self._process.exitcode or 0, self.job.name if self.job is not None else ""
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        likely = ", as a system does that runs out of memory" if code == -signal.SIGKILL else ""
        return ChildProcessError(
            f"the process of {name} {how}{likely}\n"
            "what is finished is kept: distill resume; with --set workers=1, or smaller batches, it takes less memory"
        )


@contextmanager
def _ctrl_c_is_ours() -> Iterator[None]:
    """Child processes started inside ignore Ctrl-C; our own Ctrl-C is raised once they have started.

    They inherit the blocked signal, so they ignore it from the start. The handler is for a signal that reaches another
    of our threads meanwhile: it would interrupt the start of a process half way.
    """
    _start_tracker()  # first, because starting it unblocks the signal
    pressed: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()  # no other is interrupted, or may set a handler
    previous = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if in_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main:
            signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


def _start_tracker() -> None:
    """Start Python's resource tracker, which frees the semaphores of killed processes, without its warnings."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _serve(connection: Connection) -> None:
    """A child process's main loop: do jobs until the parent closes the connection."""
    _end_with_parent()
    streams.secure()
    with suppress(EOFError, BrokenPipeError):
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))


def _answer(message: bytes) -> bytes:
    """Do the job in `message`. Returns None, or the job's error, pickled."""
    try:
        function, arguments = pickle.loads(message)
        function(*arguments)
        return pickle.dumps(None)
    except BaseException as error:
        told = error if _travels(error) else RuntimeError(f"{type(error).__name__}: {error}")
        told.add_note(f"in a process of its own:\n{traceback.format_exc()}")
        return pickle.dumps(told)


def _travels(error: BaseException) -> bool:
    """Whether an error survives pickling; often not if its constructor takes more than a message."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


def _end_with_parent() -> None:
    """End this process when its parent ends: at once on Linux, elsewhere by a thread that watches it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()  # on Linux too: the parent may have died before the first line
