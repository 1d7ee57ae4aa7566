"""The nodes of a cluster: how many workers fit on them, and whether they can work on a store.

All of it is found out before anything starts. Raises ValueError, with what to do in a second line.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tasks.engine import probe
from tasks.engine.machine import versions
from tasks.engine.settings import RuntimeSettings
from tasks.messages import first_line

CHECK_SECONDS = 120.0  # for all nodes to answer: the first import on a cold file system takes its time


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, and what it has in all, whoever uses it now."""

    id: str
    name: str
    cpus: int
    gpus: float

    def holds(self, threads: int, gpus: float) -> int:
        """How many workers of a size fit."""
        by_cpu = self.cpus // threads
        return min(by_cpu, int(self.gpus / gpus + 1e-9)) if gpus else by_cpu


@dataclass(frozen=True)
class Place:
    """What is started where: `workers` processes in all, each with so many threads and GPUs."""

    workers: int
    threads: int
    gpus: float
    nodes: Sequence[Node]  # that hold one at least

    def room(self, found: Sequence[Node]) -> int:
        """How many workers of this size fit on some nodes."""
        return sum(node.holds(self.threads, self.gpus) for node in found)


def nodes() -> list[Node]:
    """Those that are alive and have a CPU to offer."""
    found = [
        Node(each["NodeID"], each["NodeManagerHostname"], int(has.get("CPU", 0)), has.get("GPU", 0.0))
        for each in ray.nodes()
        if each["Alive"] and (has := each["Resources"])
    ]
    return [node for node in found if node.cpus]


def placed(runtime: RuntimeSettings, found: Sequence[Node]) -> Place:
    """Where the workers of a run go. Threads that are not named are shared out evenly. Raises ValueError."""
    if ":" in runtime.device:
        raise ValueError(f"device {runtime.device} is one device, and engine ray gives each worker its own\nsay cuda")
    gpus = runtime.gpus_per_worker
    if gpus is None:
        wanted = runtime.device != "cpu" and any(node.gpus for node in found)
        gpus = float(runtime.teacher_devices) if wanted or runtime.teacher_devices > 1 else 0.0

    def room(threads: int) -> int:
        return sum(node.holds(threads, gpus) for node in found)

    least = runtime.threads or 1
    workers = runtime.workers or (room(least) if gpus else sum(node.holds(least, 0) > 0 for node in found)) or 1
    if room(least) < workers:
        has = f"{_count(sum(n.cpus for n in found), 'CPU')} and {_count(sum(n.gpus for n in found), 'GPU')}"
        raise ValueError(
            f"{_count(workers, 'worker')} of {_count(least, 'CPU')} and {_count(gpus, 'GPU')} each do not fit: "
            f"{_count(len(found), 'node')} with {has}\n"
            + (
                f"set runtime.workers to {room(least)} at most"
                if room(least)
                else "lower threads, gpus_per_worker or teacher_devices"
            )
        )
    most = max(node.cpus for node in found)
    threads = runtime.threads or next(each for each in range(most, 0, -1) if room(each) >= workers)
    return Place(workers, threads, gpus, [node for node in found if node.holds(threads, gpus)])


def check_store(root: Path, found: Sequence[Node]) -> None:
    """Raise ValueError unless every node has our code and versions, and shares the store as the store needs it."""
    numbers = {str(number): node for number, node in enumerate(found)}
    with probe.laid_out(root) as folder:
        probe.replaceable(folder, list(numbers))
        answers = {_ask(node, partial(examined, folder, name)): name for name, node in numbers.items()}
        waiting, torn, until = list(answers), None, time.monotonic() + CHECK_SECONDS
        while waiting and time.monotonic() < until:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0.01)
            torn = torn or probe.torn(folder, list(numbers))
        for answer, name in answers.items():
            _check(root, numbers[name], answer)
        if torn is not None:
            raise ValueError(_refused(root, numbers[torn], "replaces files in two steps: its rename is not atomic"))
        if (unseen := probe.unseen(folder, list(numbers))) is not None:
            raise ValueError(_refused(root, numbers[unseen], "renames what is not seen here"))


@dataclass(frozen=True)
class Examined:
    """What a node says of itself."""

    code: str
    versions: dict[str, str]
    problem: str | None


def examined(folder: Path, name: str) -> Examined:
    """What this node says of itself."""
    return Examined(probe.code_digest(), versions(), probe.look(folder, name))


def _ask(node: Node, function: partial[Examined]) -> Any:
    where = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(_call).remote(function)


def _call(function: partial[Examined]) -> Examined:
    return function()


def _check(root: Path, node: Node, answer: Any) -> None:
    try:
        found: Examined = ray.get(answer, timeout=0.0)  # it is there, or late
    except (RayTaskError, RayError) as error:
        cause = getattr(error, "cause", None) or error
        raise ValueError(
            f"node {node.name} cannot do our work: {type(cause).__name__}: {first_line(cause)}\n"
            "install the same version of this project there, with the extra ray"
        ) from None
    if found.code != probe.code_digest():
        raise ValueError(
            f"node {node.name} has another version of our code\ninstall the same there, and start its Ray anew"
        )
    for name, version in versions().items():
        if found.versions.get(name) != version:
            raise ValueError(
                f"node {node.name} has {name} {found.versions.get(name, 'not at all')}, here it is {version}\n"
                "install the same there (constraints.txt), and start its Ray anew"
            )
    if found.problem is not None:
        raise ValueError(_refused(root, node, found.problem))


def _refused(root: Path, node: Node, problem: str) -> str:
    return (
        f"the store {root} cannot be shared: node {node.name} {problem}\n"
        "set DISTILL_HOME to a folder on a file system that all nodes mount at one path, with locks (docs/scale.md)"
    )


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"
