"""The engine of a cluster: Ray starts a process for each worker, and each is given one part at a time.

A part of a worker that dies is given to another one, and another worker is started. Nothing waits at a worker, so a
death costs one part; and nothing that is computed travels: workers write files, and what they answer is small.

Or all are given one thing to do together. Then each waits for the others, and a death ends them all.
"""

import logging
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tasks.engine.group import PeerLostError, Seat, Work, WorkerDiedError
from tasks.engine.local import Opens, R, T, Tell
from tasks.engine.nodes import Place, check_store, nodes, placed
from tasks.engine.settings import RuntimeSettings
from tasks.engine.workers import POLL_SECONDS, Workers
from tasks.messages import first_line

ATTEMPTS = 3  # workers that a part may end before it is given up
LOST_SECONDS = 120.0  # within which Ray knows of a death that other ranks have felt: a node is missed for a minute
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 40.0  # the question itself takes a second or two, and more on a busy machine
TOKEN = "authentication token"  # in what Ray says where it misses one
OBJECT_STORE = 80 * 2**20  # bytes, of a Ray of our own: about the least that it takes


class Cluster:
    """The workers of a run."""

    def __init__(self, runtime: RuntimeSettings, place: Place, warn: Callable[[str], None]) -> None:
        self._place, self._warn = place, warn
        self._workers = Workers(runtime, place, warn)
        self._builds = 0

    def map(self, opens: Opens[T, R], parts: Sequence[T], tell: Tell) -> Iterator[tuple[int, R]]:
        """See `Engine`."""
        self._builds += 1
        workers = self._workers
        workers.look_again()
        waiting, deaths = deque(range(len(parts))), Counter[int]()
        busy: dict[Any, tuple[Any, int]] = {}  # what a worker tells of a part -> both
        try:
            while waiting or busy:
                workers.fill(len(busy))
                while waiting and workers.idle:
                    worker, number = workers.idle.pop(), waiting.popleft()
                    busy[worker.make.remote(self._builds, opens, parts[number])] = worker, number
                    tell(number, 0)
                for answer in workers.answers(busy):
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
                        workers.idle.append(worker)
                        yield number, result
        finally:
            for worker, _ in busy.values():  # they would go on with what nobody waits for
                ray.kill(worker)
            workers.drop()

    def together(self, work: Work[T], tell: Callable[[T], None]) -> int:
        """See `Team`."""
        self._builds += 1  # what is open for a build is so no more
        ranks = self._workers.all()
        try:
            self._together(ranks, work, tell)
        except BaseException:
            for worker in ranks:  # they may wait for each other, for as long as a group does
                ray.kill(worker)
            raise
        self._workers.idle += ranks
        self._workers.drop()
        return len(ranks)

    def _together(self, ranks: Sequence[Any], work: Work[T], tell: Callable[[T], None]) -> None:
        try:
            address = ray.get(ranks[0].meet.remote())
        except RayError as error:
            raise WorkerDiedError(first_line(error).rstrip(".")) from None
        backend = "cpu:gloo,cuda:nccl" if self._place.gpus >= 1 else "gloo"  # NCCL wants a GPU for each
        seats = [Seat(rank, len(ranks), address, backend) for rank in range(len(ranks))]
        telling = [worker.join.remote(work, seat) for worker, seat in zip(ranks, seats, strict=True)]
        lost: tuple[BaseException, float] | None = None  # what the first has raised that misses another, and when
        while telling:
            for answer in ray.wait(telling, num_returns=1, timeout=POLL_SECONDS)[0]:
                try:
                    news = ray.get(next(answer))
                except StopIteration:
                    telling.remove(answer)
                except RayTaskError as error:
                    telling.remove(answer)
                    raised = _what_it_raised(error)
                    if not isinstance(raised, PeerLostError):
                        raise raised from None
                    lost = lost or (raised, time.monotonic())  # by whose death, another answer will tell
                except RayError as error:
                    raise WorkerDiedError(first_line(error).rstrip(".")) from None
                else:
                    tell(news)
            if lost is not None and (not telling or time.monotonic() - lost[1] > LOST_SECONDS):
                raise WorkerDiedError(f"the workers have lost each other: {first_line(lost[0])}") from lost[0]

    @property
    def about(self) -> dict[str, Any]:
        """See `Engine`."""
        return {"engine": "ray", "workers": self._place.workers, "threads": self._place.threads}

    def _mourn(self, error: RayError, deaths: int) -> None:
        """Say that a worker has died of a part. Raises ChildProcessError where too many have."""
        if deaths >= ATTEMPTS:
            raise ChildProcessError(
                f"{deaths} workers have died, one after another, of one part: {first_line(error)}\n"
                "what is finished is kept: distill resume; smaller batches, or fewer workers, take less memory"
            )
        self._warn(f"a worker has died: {first_line(error).rstrip('.')}; its part is made anew by another")


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
    problem = None if address == "auto" else _no_answer(address)
    if problem is not None:
        raise _refused(address, f"no Ray answers at {address}: {problem}", problem)
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # Ray has no class of its own for these: wrong versions, a wrong token, no Ray at all
        asked = str(error) if address != "auto" else f"{error} {_unhealthy()}"  # `auto` does not say that it is a token
        raise _refused(address, f"the Ray at {address} cannot be joined: {first_line(error)}", asked) from None


def _refused(address: str, problem: str, asked: str) -> ValueError:
    """A Ray that cannot be joined, and what to do: for one that wants a token, which is what `asked` tells, that."""
    if TOKEN in asked.lower():
        return ValueError(
            f"the Ray at {address} wants a token, and not what this process has, if it has one\n"
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as where it was started; "
            "or start it with RAY_AUTH_MODE=disabled"
        )
    return ValueError(
        f"{problem}\nstart it with: ray start --head; or leave runtime.address out for one on this machine alone"
    )


def _no_answer(address: str) -> str | None:
    """Why no Ray can be spoken to at an address, or None. By itself Ray would try for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        return first_line(error)
    return _unhealthy("--address", address)


def _unhealthy(*of: str) -> str | None:
    """What Ray's own health check says against a Ray, the one on this machine if none is named; None if it is well."""
    ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", *of]
    try:
        asked = subprocess.run(ask, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"what listens there is none, or has not answered in {ANSWER_SECONDS:.0f} s"
    said = asked.stderr.strip().splitlines() or ["its health check fails"]
    return next((each for each in said if TOKEN in each.lower()), said[-1]) if asked.returncode else None
