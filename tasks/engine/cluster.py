"""The engine of a cluster: Ray starts a process for each worker, and each is given one part at a time.

A part of a worker that dies is given to another one, and another worker is started. Nothing waits at a worker, so a
death costs one part; and nothing that is computed travels: workers write files, and what they answer is small.
"""

import gc
import logging
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tasks.engine.local import Opens, R, Steps, T, Tell, told
from tasks.engine.nodes import Place, check_store, nodes, placed
from tasks.engine.settings import RuntimeSettings
from tasks.messages import first_line

ATTEMPTS = 3  # workers that a part may end before it is given up
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 40.0  # the question itself takes a second or two, and more on a busy machine
WAIT_SECONDS = 30.0  # without a single worker, before it is said
DROP_SECONDS = 60.0
OBJECT_STORE = 80 * 2**20  # bytes, of a Ray of our own: about the least that it takes


class Worker:
    """A process of the cluster. What it has opened for a build stays open until the build is done."""

    def __init__(self, runtime: RuntimeSettings) -> None:
        self._runtime = runtime
        self._opened: tuple[int, Callable[[Any], Steps[Any]]] | None = None

    def ready(self) -> None:
        """Answers once the process is there."""

    @ray.method(num_returns="streaming")  # type: ignore[untyped-decorator]
    def make(self, build: int, opens: Opens[Any, Any], part: Any) -> Iterator[tuple[int, Any]]:
        """See `told`."""
        if self._opened is None or self._opened[0] != build:
            self.drop()
            self._opened = build, opens(self._runtime)
        yield from told(self._opened[1](part))

    def drop(self) -> None:
        """Let go of what is open, a device's memory included."""
        self._opened = None
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


class Cluster:
    """The workers of a run."""

    def __init__(self, runtime: RuntimeSettings, place: Place, warn: Callable[[str], None]) -> None:
        self._runtime = replace(runtime, threads=place.threads, workers=place.workers)
        self._place, self._warn = place, warn
        self._builds = 0
        self._starting: dict[Any, tuple[Any, bool]] = {}  # an answer to `ready` -> who gives it, and whether it is new
        self._stillborn = 0  # new workers that have died, one after another
        self._has_waited = False
        self._idle: list[Any] = []
        self._fill()

    def map(self, opens: Opens[T, R], parts: Sequence[T], tell: Tell) -> Iterator[tuple[int, R]]:
        """See `Engine`."""
        self._builds += 1
        self._starting |= {worker.ready.remote(): (worker, False) for worker in self._idle}  # some may have died since
        self._idle.clear()
        waiting, deaths = deque(range(len(parts))), Counter[int]()
        busy: dict[Any, tuple[Any, int]] = {}  # what a worker tells of a part -> both
        try:
            while waiting or busy:
                self._fill(len(busy))
                while waiting and self._idle:
                    worker, number = self._idle.pop(), waiting.popleft()
                    busy[worker.make.remote(self._builds, opens, parts[number])] = worker, number
                    tell(number, 0)
                for answer in self._answers(busy):
                    worker, number = busy[answer]
                    try:
                        done, result = ray.get(next(answer))
                    except RayTaskError as error:
                        raise _what_it_raised(error) from None
                    except RayError as error:
                        del busy[answer]
                        deaths[number] += 1
                        self._mourn(error, deaths[number])
                        waiting.appendleft(number)
                        continue
                    if result is None:
                        tell(number, done)
                    else:
                        del busy[answer]
                        self._idle.append(worker)
                        yield number, result
        finally:
            for worker, _ in busy.values():  # they would go on with what nobody waits for
                ray.kill(worker)
            with suppress(RayError):
                ray.get([worker.drop.remote() for worker in self._idle], timeout=DROP_SECONDS)

    @property
    def about(self) -> dict[str, Any]:
        """See `Engine`."""
        return {"engine": "ray", "workers": self._place.workers, "threads": self._place.threads}

    def _fill(self, num_busy: int = 0) -> None:
        """Start as many workers as there should be more."""
        size = {"num_cpus": self._place.threads, "num_gpus": self._place.gpus, "scheduling_strategy": "SPREAD"}
        for _ in range(self._place.workers - num_busy - len(self._idle) - len(self._starting)):
            worker = ray.remote(**size)(Worker).remote(self._runtime)
            self._starting[worker.ready.remote()] = worker, True

    def _answers(self, busy: dict[Any, tuple[Any, int]]) -> list[Any]:
        """What busy workers have to tell, waited for; workers that have started meanwhile are idle then."""
        ready, _ = ray.wait([*busy, *self._starting], num_returns=1, timeout=WAIT_SECONDS)
        if not ready and not busy and not self._has_waited:
            self._has_waited = True
            self._warn(f"no worker has started in {WAIT_SECONDS:.0f} s; waiting for room on the cluster (`ray status`)")
        for answer in ready:
            if answer in self._starting:
                self._start(answer, *self._starting.pop(answer))
        return [answer for answer in ready if answer in busy]

    def _start(self, answer: Any, worker: Any, is_new: bool) -> None:
        """Take a worker as idle if it is there. Raises ChildProcessError where no new one ever is."""
        try:
            ray.get(answer)
        except RayError as error:
            self._warn(f"a worker has died: {first_line(error)}; another one is started")
            self._stillborn += is_new
            if self._stillborn >= ATTEMPTS * self._place.workers:
                raise ChildProcessError(
                    f"no worker starts: {first_line(error)}\nwhat is finished is kept: distill resume; Ray's own logs "
                    "are in /tmp/ray of each node"
                ) from None
        else:
            self._idle.append(worker)
            self._stillborn = 0

    def _mourn(self, error: RayError, deaths: int) -> None:
        """Say that a worker has died of a part. Raises ChildProcessError where too many have."""
        if deaths >= ATTEMPTS:
            raise ChildProcessError(
                f"{deaths} workers have died, one after another, of one part: {first_line(error)}\n"
                "what is finished is kept: distill resume; smaller batches, or fewer workers, take less memory"
            )
        self._warn(f"a worker has died: {first_line(error)}; its part is made anew by another")


def _what_it_raised(error: RayTaskError) -> BaseException:
    """What a worker's work has raised, with its traceback as a note."""
    cause: BaseException = error.cause if isinstance(error.cause, BaseException) else RuntimeError(str(error))
    cause.add_note(f"in a worker:\n{error}")
    return cause


@contextmanager
def started(runtime: RuntimeSettings, root: Path, warn: Callable[[str], None]) -> Iterator[Cluster]:
    """The workers of a run on a store, in the Ray that it names or in one of its own; in the one there is, if joined.

    Raises ValueError for a Ray that cannot be had, workers that do not fit, and nodes that cannot work on the store.
    """
    joined = ray.is_initialized()
    if not joined:
        _join(runtime.address)
    try:
        place = placed(runtime, nodes())
        check_store(root, place.nodes)
        yield Cluster(runtime, place, warn)
    finally:
        if not joined:
            ray.shutdown()


def _join(address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        try:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        except Exception as error:  # Ray has no class of its own for it
            how = "its logs are in /tmp/ray/session_latest/logs; without Ray: --engine local"
            raise ValueError(f"Ray does not start here: {first_line(error)}\n{how}") from None
        return
    how = "start it with: ray start --head; or leave runtime.address out for one on this machine alone"
    problem = None if address == "auto" else _no_answer(address)
    if problem is not None:
        raise ValueError(f"no Ray answers at {address}: {problem}\n{how}")
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # Ray has no class of its own for these: wrong versions, a wrong token, no Ray at all
        raise ValueError(f"the Ray at {address} cannot be joined: {first_line(error)}\n{how}") from None


def _no_answer(address: str) -> str | None:
    """Why no Ray can be spoken to at an address, or None. By itself Ray would try for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        return first_line(error)
    ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        asked = subprocess.run(ask, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"what listens there is none, or has not answered in {ANSWER_SECONDS:.0f} s"
    return (asked.stderr.strip().splitlines() or ["its health check fails"])[-1] if asked.returncode else None
