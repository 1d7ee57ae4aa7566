"""What a training that goes on says: from where, and what its run of before has said already as that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState
from tasks.compute.models import LoadedModel
from tasks.compute.training import run_training
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Store
from tasks.store.stage import Build, open_run, stage
from tests.kd_core.conftest import tiny_t5
from tests.tasks.compute.test_alarms import START
from tests.tasks.store.tiny_stages import Listener


@dataclass
class Hearing(Listener):
    """What a run has said, how stages began and how far they were first."""

    begun: list[str] = field(default_factory=list)
    progress: list[tuple[float, float]] = field(default_factory=list)

    def stage_started(self, stage: str, key: str, why: str) -> None:
        self.begun.append(why)

    def stage_progress(self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]) -> None:
        self.progress.append((done, total))


@stage
def collapses(build: Build, steps: int) -> None:
    """Says so after update 2, and is stopped after the third that it makes."""

    def loop(state: TrainState) -> Iterator[StepMetrics]:
        if state.step == 0:
            yield StepMetrics(0, START)
        for _ in range(3):
            state.step += 1
            equal = 0.9 if state.step >= 2 else 0.05
            yield StepMetrics(state.step, START | {"loss": 1.0, "validation_equal": equal})
        raise KeyboardInterrupt

    no_tokenizer: Any = None
    run_training(build, LoadedModel(tiny_t5(), no_tokenizer), OptimizerSettings(), loop, steps)


def stopped(store: Store) -> Hearing:
    heard, runtime = Hearing(), RuntimeSettings(checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt), open_run(store, name="mine", reporter=heard, runtime=runtime):
        collapses(steps=9)
    return heard


def test_a_training_that_goes_on_says_from_where_and_repeats_no_warning_as_if_it_were_new(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before, after = stopped(store), stopped(store)
    said = "after update 2: 90% of the greedy outputs are equal to another (5% at the start)"
    assert before.warnings == [said]
    assert after.warnings == [f"as said before: {said}"]
    assert "goes on" not in before.begun[0]
    assert after.begun[0].endswith("; goes on from the checkpoint after step 3")
    assert after.progress[0] == (3, 9)
