"""A stage that trains is run by all workers together: what they write and tell, and what becomes of a death.

Needs Ray: `make test-ray`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")

from tasks.engine.group import interface_of  # noqa: E402
from tasks.engine.settings import RuntimeSettings  # noqa: E402
from tasks.store.artifacts import Artifact, Store  # noqa: E402
from tasks.store.progress import NullReporter  # noqa: E402
from tasks.store.stage import open_run  # noqa: E402
from tests.tasks.engine.tiny_training import adds  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
SUM = sum(range(12 * 8))


class Ear(NullReporter):
    """Hears warnings and progress, and calls `then` once a step has been told."""

    def __init__(self, step: int = 0, then: Callable[[], object] = lambda: None) -> None:
        self.warnings, self.steps = list[str](), list[float]()
        self._step, self._then = step, then

    def stage_progress(self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]) -> None:
        self.steps.append(done)
        assert (stage, total, unit, list(metrics)) == ("adds", 8, "steps", ["added"])
        if self._step and done >= self._step:
            self._step = 0
            self._then()

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path


def add(cluster: Any, home: Path, workers: int = 2, ear: Ear | None = None, **how: Any) -> Artifact:
    runtime = RuntimeSettings(
        engine="ray", address=cluster.address, device="cpu", threads=1, workers=workers, checkpoint_seconds=0
    )
    return add_here(home, runtime, ear, **how)


def add_here(home: Path, runtime: RuntimeSettings, ear: Ear | None = None, **how: Any) -> Artifact:
    (home / "orders.json").write_text(json.dumps(how))
    with open_run(Store(home / "store"), name="sums", runtime=runtime, reporter=ear or Ear()):
        return adds(home=str(home))


def made(artifact: Artifact) -> dict[str, int]:
    found: dict[str, int] = json.loads((artifact.path / "sums" / "sum.json").read_text())
    return found


def marks(home: Path, step: int) -> list[str]:
    """The ranks that have done a step, each time that they have."""
    return sorted(path.name.split("-")[1] for path in (home / "marks").glob(f"{step}-*"))


def test_all_workers_do_it_together_and_the_first_writes_and_tells(cluster: Any, home: Path) -> None:
    ear = Ear()
    artifact = add(cluster, home, ear=ear)
    assert made(artifact) == {"total": SUM, "rank": 0, "ranks": 2}
    assert [marks(home, step) for step in (1, 8)] == [["0", "1"]] * 2
    manifest = artifact.manifest()
    assert (manifest.stats["total"], manifest.stats["warnings"]) == (SUM, ["from step 0"])
    assert {name: manifest.machine[name] for name in ("engine", "workers")} == {"engine": "ray", "workers": 2}
    assert sorted(manifest.files) == ["begun.txt", "sums/sum.json"]
    assert ear.warnings == ["adding up", "from step 0"]
    assert ear.steps[-1] == 8


def test_a_worker_that_is_killed_takes_all_back_to_the_last_checkpoint(cluster: Any, home: Path) -> None:
    ear = Ear()
    artifact = add(cluster, home, ear=ear, deadly=4, deaths=1)
    assert made(artifact) == {"total": SUM, "rank": 0, "ranks": 2}
    assert [marks(home, step) for step in (3, 4, 8)] == [["0", "1"]] * 3
    died = [text for text in ear.warnings if text.startswith("a worker has died")]
    assert [text.rpartition("; ")[2] for text in died] == ["all go on from the checkpoint after step 3"]
    assert ear.warnings.count("adding up") == 1
    assert artifact.manifest().stats["warnings"] == ["from step 3"]


def test_three_deaths_without_a_checkpoint_between_end_it(cluster: Any, home: Path) -> None:
    with pytest.raises(ChildProcessError, match=r"^adds has lost 3 workers without a checkpoint between: .*\nwhat is"):
        add(cluster, home, deadly=4, deaths=99)
    assert marks(home, 3) == ["0", "1"]
    assert made(add(cluster, home))["total"] == SUM, "the next run goes on"
    assert marks(home, 3) == ["0", "1"]


def test_what_one_rank_raises_is_raised_here_at_once(cluster: Any, home: Path) -> None:
    with pytest.raises(ValueError, match="add up") as raised:
        add(cluster, home, wrong=3)
    assert str(raised.value) == "these do not add up\ntake others"
    assert "in a worker:" in raised.value.__notes__[0]
    assert made(add(cluster, home))["total"] == SUM


def test_those_that_are_left_go_on_without_a_node(cluster: Any, home: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    ear = Ear(3, lambda: cluster.remove_node(node, allow_graceful=False))
    artifact = add(cluster, home, workers=3, ear=ear, pause=0.3)
    assert made(artifact) == {"total": SUM, "rank": 0, "ranks": 2}
    assert artifact.manifest().machine["workers"] == 2
    assert "2 of 3 workers can be had now: they train without the others" in ear.warnings
    assert any(text.startswith("a worker has died") for text in ear.warnings)


def test_another_number_goes_on_from_a_checkpoint(cluster: Any, home: Path) -> None:
    local = RuntimeSettings(device="cpu", threads=1, checkpoint_seconds=0)
    with pytest.raises(ValueError, match="add up"):
        add_here(home, local, wrong=3)
    with pytest.raises(ValueError, match="add up"):
        add(cluster, home, wrong=6)
    assert made(add_here(home, local)) == {"total": SUM, "rank": 0, "ranks": 1}
    assert [marks(home, step) for step in range(1, 5)] == [["0"]] * 2 + [["0", "1"]] * 2


def test_the_interface_that_has_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None
