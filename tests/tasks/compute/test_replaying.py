"""`runtime.cuda_graphs`: who writes by graphs, and that a run says of whom it does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_core.models.backends.graphs import writes_in_graphs
from tasks.compute.training import replaying
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Store
from tasks.store.progress import NullReporter
from tasks.store.stage import Build, open_run, stage
from tests.kd_core.models.backends.families import tiny


class Ear(NullReporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def warning(self, text: str) -> None:
        self.heard.append(text)


@stage
def trained(build: Build, family: str, seed: int) -> None:
    """Nothing but what is entered to train."""
    model = tiny(family)
    with replaying(build, model):
        build.record(by_graphs=int(writes_in_graphs(model)))
    assert not writes_in_graphs(model)


@pytest.mark.parametrize("family", ["llama", "t5", "gpt_neo", "falcon"])  # packed, our own, our own, padded
@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_says_once_of_what_model_it_does_nothing(tmp_path: Path, family: str, wanted: bool) -> None:
    ear, by_graphs = Ear(), wanted and family == "llama"
    with open_run(Store(tmp_path), name="test", runtime=RuntimeSettings(cuda_graphs=wanted), reporter=ear):
        for seed in (0, 1):
            stats = trained(family=family, seed=seed).manifest().stats
            assert stats == {"by_graphs": by_graphs}, "no artifact keeps what the run was told"
    said = (
        f"runtime.cuda_graphs does nothing for a model of type {family!r}, which writes without them; leave it at false"
    )
    assert ear.heard == [said] * (wanted and not by_graphs)
