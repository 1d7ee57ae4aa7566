"""Cells of a comparison side by side: processes that build artifacts into the store, where the comparison finds them.

The store is what they share: a stage that two cells need is built by one of them while the other waits for its lock.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.outlines import outline_of
from tasks.progress import NullReporter
from tasks.stage import Run, RuntimeSettings, open_run
from tasks.store import Store

POLL_SECONDS = 1.0


def build_cells(run: Run, entrypoint: str, cells: Sequence[tuple[str, dict[str, Any]]], workers: int) -> None:
    """Build all cells, the first one alone: it makes what the others share, with all threads.

    Raises what a cell raised; the cells that are done are kept.
    """
    _, first = cells[0]
    run.reporter.stage_progress("cells", 0, len(cells), "cells", {})
    with run.serving(cells[0][0]):
        outline_of(entrypoint).pipeline(**first)
    threads = max(1, (run.runtime.threads or os.cpu_count() or 1) // workers)
    runtime = replace(run.runtime, threads=threads)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, context, _end_with_parent, (os.getpid(),)) as pool:
        jobs = [
            pool.submit(_build, run.store.root, entrypoint, name, parameters, runtime, run.run_id)
            for name, parameters in cells[1:]
        ]
        try:
            for done, job in enumerate(as_completed(jobs), start=2):
                run.reporter.stage_progress("cells", done, len(cells), "cells", {})
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _build(
    root: Path, entrypoint: str, name: str, parameters: dict[str, Any], runtime: RuntimeSettings, comparison: str
) -> str:
    """One cell in a process of its own, recorded as a part of the comparison, which then finds all in the store."""
    with open_run(Store(root), name="cell", runtime=runtime, reporter=NullReporter(), part_of=comparison):
        outline_of(entrypoint).pipeline(**parameters)
    return name


def _end_with_parent(parent: int) -> None:
    """A killed comparison leaves no workers behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
