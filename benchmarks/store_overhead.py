"""What the store itself costs a stage: a build of nothing and a hit, in a store that holds hundreds of artifacts."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import line
from tasks.store.artifacts import Store
from tasks.store.stage import Build, open_run, stage

ARTIFACTS, REPEATS = 300, 30


@stage
def nothing(build: Build, number: int) -> None:
    """A stage whose work is one small file."""
    write(build.dir, number)


def write(directory: Path, number: int) -> None:
    """All that it does."""
    (directory / "number.txt").write_text(str(number), encoding="utf-8")


def run() -> Iterator[dict[str, Any]]:
    """Milliseconds a stage; the reference is the plain call. A ratio says little here: the target is 50 ms."""
    with tempfile.TemporaryDirectory() as folder:
        store, plain = Store(Path(folder) / "home"), Path(folder)
        with open_run(store, name="bench"):
            for number in range(ARTIFACTS):
                nothing(number=number)
        with open_run(store, name="bench"):
            built = [seconds(lambda n=n: nothing(number=ARTIFACTS + n)) for n in range(REPEATS)]
            hit = [seconds(lambda n=n: nothing(number=n)) for n in range(REPEATS)]
        called = [seconds(lambda n=n: write(plain, n)) for n in range(REPEATS)]
    for what, times in (("build", built), ("hit", hit)):
        yield line("store_overhead", 1e3 * median(times), 1e3 * median(called), "ms", what=what, artifacts=ARTIFACTS)


def seconds(call: Any) -> float:
    """How long one call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
