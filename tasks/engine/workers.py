"""The processes of a cluster that compute: started by Ray, counted, and started anew where one has died."""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from tasks.engine.group import Seat, Work, in_group, met_at
from tasks.engine.local import Opens, Steps, told
from tasks.engine.nodes import Place, nodes
from tasks.engine.settings import RuntimeSettings
from tasks.messages import first_line

ATTEMPTS = 3  # new workers in a row, for each that should be, that may die before one has started
POLL_SECONDS = 1.0
WAIT_SECONDS = 30.0  # without a single worker, before it is said
FEWER_SECONDS = 120.0  # without another worker, before those that are there train without it
DROP_SECONDS = 60.0


class Worker:
    """A process of the cluster. What it has opened for a build stays open until the build is done."""

    def __init__(self, runtime: RuntimeSettings) -> None:
        self._runtime = runtime
        self._opened: tuple[int, Callable[[Any], Steps[Any]]] | None = None
        self._meeting: Any = None  # where others meet this one

    def ready(self) -> str:
        """Answers once the process is there: on which node."""
        return str(ray.get_runtime_context().get_node_id())

    def meet(self) -> tuple[str, int]:
        """Where others can meet this process."""
        host = ray.util.get_node_ip_address()
        self._meeting = met_at(host)
        return host, self._meeting.port

    @ray.method(num_returns="streaming")  # type: ignore[untyped-decorator]
    def join(self, work: Work[Any], seat: Seat) -> Iterator[Any]:
        """See `in_group`."""
        meeting = self._meeting if seat.rank == 0 else None
        yield from in_group(work, self._runtime, seat, ray.util.get_node_ip_address(), meeting)

    @ray.method(num_returns="streaming")  # type: ignore[untyped-decorator]
    def make(self, build: int, opens: Opens[Any, Any], part: Any) -> Iterator[tuple[int, Any]]:
        """See `told`."""
        if self._opened is None or self._opened[0] != build:
            self.drop()
            self._opened = build, opens(self._runtime)
        yield from told(self._opened[1](part))

    def drop(self) -> None:
        """Let go of what is open, a device's memory included."""
        self._opened = self._meeting = None
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


class Workers:
    """Those of a run: as many as there should be, or on their way."""

    def __init__(self, runtime: RuntimeSettings, place: Place, warn: Callable[[str], None]) -> None:
        self.idle: list[Any] = []
        self.starting: dict[Any, tuple[Any, bool]] = {}  # an answer to `ready` -> who gives it, and whether it is new
        self._runtime = replace(runtime, threads=place.threads, workers=place.workers)
        self._place, self._warn = place, warn
        self._node: dict[Any, str] = {}  # of each that has started
        self._stillborn = 0  # new workers that have died, one after another
        self._none_since, self._has_waited = time.monotonic(), False
        self._fewer = place.workers  # that trained together the last time
        self.fill()

    def look_again(self) -> None:
        """Take none for idle that may have died since."""
        self.starting |= {worker.ready.remote(): (worker, False) for worker in self.idle}
        self.idle.clear()
        self._none_since = time.monotonic()

    def fill(self, num_busy: int = 0) -> None:
        """Start as many workers as there should be more."""
        size = {"num_cpus": self._place.threads, "num_gpus": self._place.gpus, "scheduling_strategy": "SPREAD"}
        for _ in range(self._place.workers - num_busy - len(self.idle) - len(self.starting)):
            worker = ray.remote(**size)(Worker).remote(self._runtime)
            self.starting[worker.ready.remote()] = worker, True

    def answers(self, busy: dict[Any, Any]) -> list[Any]:
        """What busy workers have to tell, waited for a second; workers that have started meanwhile are idle then.

        Raises ChildProcessError where no new one ever starts.
        """
        ready, _ = ray.wait([*busy, *self.starting], num_returns=1, timeout=POLL_SECONDS)
        for answer in ready:
            if answer in self.starting:
                self._start(answer, *self.starting.pop(answer))
        if busy or self.idle:
            self._none_since = time.monotonic()
        elif time.monotonic() - self._none_since > WAIT_SECONDS and not self._has_waited:
            self._has_waited = True
            self._warn(f"no worker has started in {WAIT_SECONDS:.0f} s; waiting for room on the cluster (`ray status`)")
        return [answer for answer in ready if answer in busy]

    def all(self) -> list[Any]:
        """Take every worker, waited for, those of a node side by side. Says so where no more than some can be had."""
        self.look_again()
        since = time.monotonic()
        while len(self.idle) < self._place.workers:
            self.fill()
            before, late = len(self.idle), time.monotonic() - since > FEWER_SECONDS
            if before and (late or before >= self._place.room(nodes())):
                break
            self.answers({})
            if len(self.idle) > before:
                since = time.monotonic()
        taken, self.idle = sorted(self.idle, key=lambda worker: self._node[worker]), []
        if len(taken) < self._place.workers and len(taken) != self._fewer:
            self._warn(f"{len(taken)} of {self._place.workers} workers can be had now: they train without the others")
        self._fewer = len(taken)
        return taken

    def drop(self) -> None:
        """Let those that are idle let go of what they have open."""
        with suppress(RayError):
            ray.get([worker.drop.remote() for worker in self.idle], timeout=DROP_SECONDS)

    def _start(self, answer: Any, worker: Any, is_new: bool) -> None:
        """Take a worker as idle if it is there."""
        try:
            self._node[worker] = ray.get(answer)
        except RayError as error:
            self._warn(f"a worker has died: {first_line(error).rstrip('.')}; another one is started")
            self._stillborn += is_new
            if self._stillborn >= ATTEMPTS * self._place.workers:
                raise ChildProcessError(
                    f"no worker starts: {first_line(error)}\nwhat is finished is kept: distill resume; Ray's own logs "
                    "are in /tmp/ray of each node"
                ) from None
        else:
            self.idle.append(worker)
            self._stillborn = 0
