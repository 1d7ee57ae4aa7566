"""A whole run whose models two workers share out, against one process. Needs Ray: `make test-ray`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.catalogue import load_catalogue, override
from flows.outlines import execute, outline_of
from flows.settings import validate
from tasks.store.artifacts import Store
from tasks.store.progress import NullReporter
from tests.tasks.engine.training_logs import logs
from tests.tasks.tiny_models import write_llama

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

PROJECT = Path(__file__).parents[3]
RECIPES = PROJECT / "tests" / "e2e" / "prefect.yaml"
HELD = ("method.start_kl=0.1", "method.reverse_kl=0.1", "method.optimizer.precision=float32")


def run_llamas(home: Path, models: Path, *changes: str) -> Store:
    named = load_catalogue(RECIPES)["tiny"]
    llamas = {role: {"name": str(models / role)} for role in ("teacher", "student")}
    parameters: dict[str, Any] = {name: value for name, value in named.parameters.items() if name not in llamas}
    outline, store = outline_of(named.entrypoint), Store(home)
    given = override(parameters | llamas, [*HELD, "runtime.checkpoint_seconds=0", *changes])
    execute(outline, store, "tiny", validate(outline.parameters, given), NullReporter())
    return store


def test_sharded_models_make_the_run_of_one_process(cluster: Any, tmp_path: Path) -> None:
    for seed, role in enumerate(("teacher", "student")):
        write_llama(tmp_path / role, seed=seed)
    alone = run_llamas(tmp_path / "alone", tmp_path)
    two = ("runtime.engine=ray", "runtime.workers=2", f"runtime.address={cluster.address}", "runtime.sharded=both")
    shared = run_llamas(tmp_path / "shared", tmp_path, *two)
    trained = [each for each in shared.artifacts() if (each.path / "training_log.parquet").exists()]
    assert [each.manifest().machine["workers"] for each in trained] == [2, 2]
    found, expected = logs(shared), logs(alone)
    assert len(expected) > 50
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
