"""Work for an engine, light enough that a worker starts at once: squares, and parts that end their worker, or fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tasks.engine.local import Steps
from tasks.engine.settings import RuntimeSettings

Square = tuple[int, int, RuntimeSettings]  # and the process that it comes from, with what that was told


def squares(runtime: RuntimeSettings) -> Callable[[int], Steps[Square]]:
    """Tells 1 and 2 of each part."""

    def work(part: int) -> Steps[Square]:
        yield 1
        yield 2
        return part**2, os.getpid(), runtime

    return work


def slow(runtime: RuntimeSettings) -> Callable[[int], Steps[Square]]:
    """The same, slowly enough that every worker gets a part."""

    def work(part: int) -> Steps[Square]:
        time.sleep(0.5)
        yield 1
        return part**2, os.getpid(), runtime

    return work


def deadly(marks: Path, times: int, runtime: RuntimeSettings) -> Callable[[int], Steps[Square]]:
    """The same, but the first `times` processes that begin part 3 end there. A mark for each time a part is begun."""

    def work(part: int) -> Steps[Square]:
        (marks / f"{part}-{os.getpid()}").touch()
        yield 1
        if part == 3 and len(list(marks.glob("3-*"))) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return part**2, os.getpid(), runtime

    return work


def wrong(runtime: RuntimeSettings) -> Callable[[int], Steps[Square]]:
    """Refuses part 2."""

    def work(part: int) -> Steps[Square]:
        yield 0
        if part == 2:
            raise ValueError("part 2 is wrong\nuse another")
        return part**2, os.getpid(), runtime

    return work
