"""Cells of a comparison side by side: processes that build artifacts into the store, where the comparison finds them.

The store is what they share: a stage that two cells need is built by one of them while the other waits for its lock.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from flows.crew import Job, run_jobs
from flows.outlines import outline_of
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Store
from tasks.store.progress import NullReporter
from tasks.store.stage import Run, open_run

UNTRACKED: set[str] = set()  # trackers that have failed in this process, which builds several cells: said once


def build_cells(run: Run, entrypoint: str, cells: Sequence[tuple[str, dict[str, Any]]], workers: int) -> None:
    """Build all cells, the first one alone: it makes what the others share, with all threads.

    Where the others are there already, there is nothing to wait for a device for.

    Raises what a cell raised; the cells that are done are kept.
    """
    numbers = count()

    def tell() -> None:
        run.reporter.stage_progress("cells", next(numbers), len(cells), "cells", {})

    tell()
    with run.serving(cells[0][0]):
        outline_of(entrypoint).pipeline(**cells[0][1])
    tell()
    if all(_is_there(run.store, entrypoint, parameters) for _, parameters in cells[1:]):
        for _ in cells[1:]:
            tell()
        return
    from tasks.compute.device import free_unused  # torch, which the first cell has loaded

    run.runtime = run.claim(run.runtime)  # the cells share the device of their run
    free_unused()
    threads = max(1, (run.runtime.threads or os.cpu_count() or 1) // workers)
    runtime = replace(run.runtime, threads=threads)
    jobs = [
        Job(name, _build, (run.store.root, entrypoint, parameters, runtime, run.run_id, name, run.untracked))
        for name, parameters in cells[1:]
    ]
    run_jobs(jobs, workers, tell)


def _is_there(store: Store, entrypoint: str, parameters: dict[str, Any]) -> bool:
    """Whether nothing of a cell is to be built, which then needs neither a process nor a device."""
    with open_run(store, name="cell", planning=True) as planned:
        outline_of(entrypoint).pipeline(**parameters)
    return all(row.status == "hit" for row in planned.plan)


def _build(
    root: Path,
    entrypoint: str,
    parameters: dict[str, Any],
    runtime: RuntimeSettings,
    comparison: str,
    cell: str,
    untracked: set[str],
) -> None:
    """One cell in a process of its own, recorded as a part of the comparison, which then finds all in the store."""
    UNTRACKED.update(untracked)
    with (
        open_run(Store(root), name="cell", runtime=runtime, reporter=_Warner(), part_of=comparison) as run,
        run.serving(cell),
    ):
        run.untracked = UNTRACKED
        outline_of(entrypoint).pipeline(**parameters)


class _Warner(NullReporter):
    """Passes on warnings only: the comparison itself finds these stages as hits, which do not warn again."""

    def warning(self, text: str) -> None:
        print(f"WARNING: {text}", file=sys.stderr, flush=True)
