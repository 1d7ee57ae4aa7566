"""A stage that trains, light enough that its ranks start at once: it adds numbers up, each rank its part of them."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from kd_core.train.ranks import Ranks
from tasks.store.stage import Build, stage, trains


@dataclass(frozen=True)
class Orders:
    """What is to happen, in no key: the steps at which the last rank is killed, or refuses to go on."""

    deadly: int = 0
    deaths: int = 0
    wrong: int = 0
    pause: float = 0.0  # seconds a step


def write(total: int, directory: Path) -> None:
    """A checkpoint."""
    (directory / "total.json").write_text(json.dumps(total))


@trains()
@stage
def adds(build: Build, home: str, steps: int = 8) -> None:
    """The sum of 0 … 12 · steps, and whose it is, in sum.json; a file in home/marks for each step of each rank."""
    orders, marks = Orders(**json.loads(Path(home, "orders.json").read_text())), Path(home, "marks")
    ranks = Ranks.here()
    rank, size = ranks.rank, ranks.size
    step, total = 0, 0
    latest = ranks.agreed(build.checkpoints.latest() if ranks.is_first else None)
    if latest is not None:
        step, total = latest[0], json.loads((latest[1] / "total.json").read_text())
    with ranks.first_alone():
        if not build.shards.whole("begun.txt"):
            build.shards.write("begun.txt", lambda path: path.write_text(str(rank)))
    assert (build.shards.dir / "begun.txt").read_text() == "0"
    build.run.warn_once("adding up")
    build.warn(f"from step {step}")
    while step < steps:
        step += 1
        if orders.wrong == step and rank == size - 1:
            raise ValueError("these do not add up\ntake others")
        if orders.deadly == step and rank == size - 1 and len(list(marks.glob("dead-*"))) < orders.deaths:
            (marks / f"dead-{os.getpid()}").touch()
            time.sleep(1)  # so that the first has saved what was before
            os.kill(os.getpid(), signal.SIGKILL)
        part = torch.tensor([number for number in range(12 * step - 12, 12 * step) if number % size == rank]).sum()
        total += int(ranks.total(part))
        (marks / f"{step}-{rank}-{os.getpid()}").touch()
        if ranks.is_first and build.checkpoints.due():
            build.checkpoints.save(step, partial(write, total))
        build.progress(step, steps, "steps", added=total)
        time.sleep(orders.pause)
    (build.dir / "sums").mkdir()
    (build.dir / "sums" / "sum.json").write_text(json.dumps({"total": total, "rank": rank, "ranks": size}))
    build.shards.collect("begun.txt")
    build.record(total=total)
