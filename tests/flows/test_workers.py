"""Cells of a comparison side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import workers
from flows.workers import build_cells
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Store
from tasks.store.progress import NullReporter
from tasks.store.stage import open_run
from tests.tasks.tiny_texts import OUTLINE, text_parameters

SMALL = ["method.rounds=1", "method.epochs=1", "evaluation.resamples=2", "evaluation.start_stride=40"]


def test_they_share_the_device_of_their_run_which_has_it_also_where_the_first_of_them_is_there(tmp_path: Path) -> None:
    """Each would wait for its parent for ever, or take what another run has."""

    def claim(runtime: RuntimeSettings) -> RuntimeSettings:
        return replace(runtime, device="cpu")

    cells = [(f"seed={seed}", text_parameters(tmp_path, f"seed={seed}", *SMALL)) for seed in (0, 1)]
    on_cpu = [each.pop("runtime") for _, each in cells]
    with open_run(Store(tmp_path), name="tiny-text", runtime=on_cpu[0]):
        OUTLINE.pipeline(**cells[0][1])
    runtime = RuntimeSettings(device="cuda:99", threads=1)  # is nowhere: who does not have the claimed one fails
    with open_run(Store(tmp_path), name="compare/some", runtime=runtime) as run:
        run.claim = claim
        build_cells(run, OUTLINE.entrypoint, cells, workers=2)
    assert {each.outcome for each in run.stages} == {"hit"}
    with open_run(Store(tmp_path), name="tiny-text", runtime=on_cpu[1]) as second:
        OUTLINE.pipeline(**cells[1][1])
    assert {each.outcome for each in second.stages} == {"hit"}


def test_cells_that_are_there_wait_for_no_device(tmp_path: Path) -> None:
    def claim(_: RuntimeSettings) -> RuntimeSettings:
        raise AssertionError("nothing is to be built")

    told: list[float] = []

    class Teller(NullReporter):
        def stage_progress(
            self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]
        ) -> None:
            told.append(done)

    cells = [(f"seed={seed}", text_parameters(tmp_path, f"seed={seed}", *SMALL)) for seed in (0, 1)]
    for _, each in cells:
        with open_run(Store(tmp_path), name="tiny-text", runtime=each.pop("runtime")):
            OUTLINE.pipeline(**each)
    with open_run(Store(tmp_path), name="compare/some", reporter=Teller()) as run:
        run.claim = claim
        build_cells(run, OUTLINE.entrypoint, cells, workers=2)
    assert told == [0, 1, 2]


def test_the_memory_that_the_first_cell_has_left_is_free_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def run_jobs(jobs: Any, *_: Any) -> None:
        order.append(f"{len(jobs)} jobs")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("freed"))
    monkeypatch.setattr(workers, "run_jobs", run_jobs)
    cells = [(f"seed={seed}", text_parameters(tmp_path, f"seed={seed}", *SMALL)) for seed in (0, 1)]
    on_cpu = [each.pop("runtime") for _, each in cells]
    with open_run(Store(tmp_path), name="compare/some", runtime=on_cpu[0]) as run:
        build_cells(run, OUTLINE.entrypoint, cells, workers=2)
    assert order == ["freed", "1 jobs"]
