"""Whole runs with their shards on workers: the same bytes as in one process, whoever is killed meanwhile.

Needs Ray: `make test-ray`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from data.reading.specs import DatasetSettings
from flows.catalogue import load_catalogue, override
from flows.outlines import execute, outline_of
from flows.settings import validate
from tasks.engine.settings import RuntimeSettings
from tasks.pairs.prepare import prepare
from tasks.store.artifacts import Store
from tasks.store.progress import NullReporter
from tasks.store.stage import open_run
from tests.tasks.judge.chat_server import Answer, Asked, chat_server, says
from tests.tasks.tiny_texts import run_text

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

PROJECT = Path(__file__).parents[3]
RECIPES = PROJECT / "tests" / "e2e" / "prefect.yaml"
CHANGES = ("score.shard_rows=8",)
TEXT_CHANGES = ("method.rounds=2", "method.trajectory_stride=8", "evaluation.rounds=false")


class Ear(NullReporter):
    """Hears warnings, and calls `then` at the first sign that a stage is under way."""

    def __init__(self, stage: str = "", then: Callable[[], object] = lambda: None) -> None:
        self.warnings: list[str] = []
        self._stage, self._then, self._called = stage, then, False

    def stage_progress(self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]) -> None:
        if stage == self._stage and 0 < done < total and not self._called:
            self._called = True
            self._then()

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def run_pairs(home: Path, ear: Ear, *changes: str) -> Store:
    named = load_catalogue(RECIPES)["tiny"]
    outline, store = outline_of(named.entrypoint), Store(home)
    execute(outline, store, "tiny", validate(outline.parameters, override(named.parameters, [*CHANGES, *changes])), ear)
    return store


def on_workers(cluster: Any) -> tuple[str, ...]:
    return ("runtime.engine=ray", "runtime.workers=2", f"runtime.address={cluster.address}")


def files(store: Store) -> dict[str, dict[str, str]]:
    """Artifact -> file -> hash."""
    return {
        f"{each.stage}/{each.key}": {name: record.sha256 for name, record in each.manifest().files.items()}
        for each in store.artifacts()
    }


def workers_of(node: Any) -> list[int]:
    """The processes of a node that are workers of ours."""
    raylet = node.all_processes["raylet"][0].process.pid
    return [pid for pid in children(raylet) if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker")]


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What one process makes of the tiny run."""
    return files(run_pairs(tmp_path_factory.mktemp("alone"), Ear()))


def test_a_worker_that_is_killed_in_scoring_changes_no_byte(
    alone: dict[str, dict[str, str]], cluster: Any, tmp_path: Path
) -> None:
    def kill() -> None:
        os.kill(workers_of(cluster.list_all_nodes()[0])[0], signal.SIGKILL)

    ear = Ear("score", kill)
    store = run_pairs(tmp_path, ear, *on_workers(cluster))
    assert any(text.startswith("a worker has died") for text in ear.warnings)
    assert files(store) == alone
    (scored,) = store.artifacts("score")
    assert scored.manifest().stats["tokens_per_second"] > 0
    assert scored.manifest().machine["workers"] == 2


def test_the_search_for_overlap_is_the_same_though_a_worker_is_killed(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv = tmp_path / "pairs.csv"
    csv.write_text(
        "source,target\n" + "".join(f"{i} words of one kind {i % 7},and an answer {i}\n" for i in range(900))
    )
    dataset = DatasetSettings(source="files", path=str(csv))

    def prepared(home: Path, ear: Ear, runtime: RuntimeSettings) -> dict[str, dict[str, str]]:
        store = Store(home)
        with open_run(store, name="test", runtime=runtime, reporter=ear):
            prepare(dataset=dataset, seed=0, limit=None)
        return files(store)

    def kill() -> None:
        os.kill(workers_of(cluster.list_all_nodes()[0])[0], signal.SIGKILL)

    alone = prepared(tmp_path / "alone", Ear(), RuntimeSettings())
    monkeypatch.setattr("data.cleaning.split_overlap.PART_BYTES", 1000)
    ear = Ear("prepare", kill)
    runtime = RuntimeSettings(engine="ray", workers=2, address=cluster.address, device="cpu", threads=1)
    assert prepared(tmp_path / "shared", ear, runtime) == alone
    assert any(text.startswith("a worker has died") for text in ear.warnings)


def test_running_text_is_the_same_though_a_node_is_killed(cluster: Any, tmp_path: Path) -> None:
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    alone, shared = Store(tmp_path / "alone"), Store(tmp_path / "shared")
    run_text(alone, *TEXT_CHANGES)
    node = cluster.add_node(num_cpus=1)

    def kill() -> None:
        cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: sum(each["Alive"] for each in ray.nodes()) == len(cluster.list_all_nodes()))

    ear = Ear("dagger_aggregate[1]", kill)
    run_text(shared, *TEXT_CHANGES, *on_workers(cluster), "runtime.workers=3", reporter=ear)
    assert files(shared) == files(alone)
    assert any(text.startswith("a worker has died") for text in ear.warnings)


def test_judging_is_the_same_though_a_worker_is_killed_and_asks_with_the_keys_of_the_workers(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = {name: tmp_path / name for name in ("alone", "shared")}
    for root in stores.values():
        root.mkdir()
    monkeypatch.setenv("OPENAI_API_KEY", "the-drivers")
    monkeypatch.setattr("tasks.text.g_eval.SHARD_REQUESTS", 3)

    def judge(asked: Asked) -> Answer:
        time.sleep(0.05)
        return says(f"Score: {1 + len(asked.text) % 5}")

    def kill() -> None:
        os.kill(workers_of(cluster.list_all_nodes()[0])[0], signal.SIGKILL)

    judged = (*TEXT_CHANGES, "evaluation.judge.criteria=papers", "evaluation.judge.requests_in_flight=2")
    with chat_server(judge) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)  # the driver has it, the workers do not
        run_text(Store(stores["alone"]), *judged)
        alone = list(server.asked)
        ear = Ear("g_eval[teacher]", kill)
        run_text(Store(stores["shared"]), *judged, *on_workers(cluster), reporter=ear)
        shared = server.asked[len(alone) :]
    assert files(Store(stores["shared"])) == files(Store(stores["alone"]))
    assert any(text.startswith("a worker has died") for text in ear.warnings)
    assert {each.text for each in shared} == {each.text for each in alone}
    assert len(shared) <= len(alone) + 2, "what was in flight is all that is asked again"
    keys = [each.headers["authorization"] for each in shared]
    assert keys == ["Bearer the-drivers"] + ["Bearer none"] * (len(shared) - 1), "the driver asks the check alone"


def test_a_driver_that_is_killed_leaves_nobody_behind_and_is_gone_on_with(
    alone: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    options = [word for change in CHANGES for word in ("--set", change)]
    command = [sys.executable, "-m", "flows.cli.main", "run", "tiny", "--prefect-file", str(RECIPES), *options]
    environment = os.environ | {"DISTILL_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    driver = subprocess.Popen([*command, "--engine", "ray", "--workers", "2"], cwd=PROJECT, env=environment)
    wait_for(lambda: list((tmp_path / ".checkpoints").glob("score-*/outputs-*.parquet")) != [])
    family = descendants(driver.pid)
    assert len(family) > 3
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(map(is_alive, family)))
    store = run_pairs(tmp_path, Ear())
    assert files(store) == alone


def descendants(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        found += children(each)
    return found[1:]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
