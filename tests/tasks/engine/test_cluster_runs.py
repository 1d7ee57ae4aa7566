"""Whole runs on workers: what is made in shards is as in one process, what is trained to a float's last digits.

For one number of workers all is the same, byte for byte, whoever is killed meanwhile. Needs Ray: `make test-ray`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import chain
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
from tests.tasks.engine.training_logs import logs
from tests.tasks.judge.chat_server import Answer, Asked, chat_server, says
from tests.tasks.tiny_texts import run_text

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

PROJECT = Path(__file__).parents[3]
RECIPES = PROJECT / "tests" / "e2e" / "prefect.yaml"
CHANGES = (
    "score.shard_rows=8",
    "runtime.checkpoint_seconds=0",
    "method.steps=20",  # enough to be killed in
    "method.validate_every=10",
)
TEXT_CHANGES = ("method.rounds=2", "method.trajectory_stride=8", "evaluation.rounds=false", CHANGES[1])


class Ear(NullReporter):
    """Hears warnings, and calls what is given at the first sign that a stage is under way."""

    def __init__(self, **then: Callable[[], object]) -> None:
        self.warnings: list[str] = []
        self._then = then

    def stage_progress(self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]) -> None:
        if 1 < done < total and stage in self._then:  # one step is in a checkpoint
            self._then.pop(stage)()

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


def assert_trained_alike(one: Store, other: Store, within: float) -> None:
    ours, theirs = logs(one), logs(other)
    assert ours.keys() == theirs.keys()
    assert {where: (value, theirs[where]) for where, value in ours.items() if abs(value - theirs[where]) > within} == {}


def workers_of(node: Any) -> list[int]:
    """The processes of a node that are workers of ours."""
    raylet = node.all_processes["raylet"][0].process.pid
    return list(filter(is_worker, children(raylet)))


def is_worker(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_worker(cluster: Any) -> None:
    os.kill(next(pid for node in cluster.list_all_nodes() for pid in workers_of(node)), signal.SIGKILL)


def kill_node(cluster: Any) -> None:
    """One that has a worker; not the first, which holds the cluster together."""
    cluster.remove_node(next(filter(workers_of, cluster.list_all_nodes()[1:])), allow_graceful=False)
    wait_for(lambda: sum(each["Alive"] for each in ray.nodes()) == len(cluster.list_all_nodes()))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What one process makes of the tiny run."""
    return run_pairs(tmp_path_factory.mktemp("alone"), Ear())


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, cluster: Any) -> Store:
    """What two workers make of it, undisturbed."""
    return run_pairs(tmp_path_factory.mktemp("together"), Ear(), *on_workers(cluster))


def test_two_workers_make_what_one_process_does(alone: Store, together: Store) -> None:
    assert files(together).keys() == files(alone).keys()
    assert_trained_alike(alone, together, 1e-6)
    for stage in ("score", "pre_distill", "llmr"):
        (artifact,) = together.artifacts(stage)
        manifest = artifact.manifest()
        assert (manifest.machine["engine"], manifest.machine["workers"]) == ("ray", 2)
    assert manifest.stats.keys() == next(alone.artifacts("llmr")).manifest().stats.keys()


def test_workers_that_are_killed_in_scoring_and_in_training_change_no_byte(
    together: Store, cluster: Any, tmp_path: Path
) -> None:
    ear = Ear(score=lambda: kill_worker(cluster), llmr=lambda: kill_worker(cluster))
    store = run_pairs(tmp_path, ear, *on_workers(cluster))
    died = [text.rpartition("; ")[2] for text in ear.warnings if text.startswith("a worker has died")]
    assert "its part is made anew by another" in died
    assert any(text.startswith("all go on from the checkpoint after step") for text in died)
    assert files(store) == files(together)
    (scored,) = store.artifacts("score")
    assert scored.manifest().stats["tokens_per_second"] > 0


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

    alone = prepared(tmp_path / "alone", Ear(), RuntimeSettings())
    monkeypatch.setattr("data.cleaning.split_overlap.PART_BYTES", 1000)
    ear = Ear(prepare=lambda: kill_worker(cluster))
    runtime = RuntimeSettings(engine="ray", workers=2, address=cluster.address, device="cpu", threads=1)
    assert prepared(tmp_path / "shared", ear, runtime) == alone
    assert any(text.startswith("a worker has died") for text in ear.warnings)


def test_running_text_is_the_same_though_nodes_are_killed(cluster: Any, tmp_path: Path) -> None:
    stores = {name: Store(tmp_path / name) for name in ("alone", "together", "disturbed")}
    run_text(stores["alone"], *TEXT_CHANGES)
    run_text(stores["together"], *TEXT_CHANGES, *on_workers(cluster))
    assert files(stores["together"]).keys() == files(stores["alone"]).keys()
    assert_trained_alike(stores["alone"], stores["together"], 2e-5)  # labels are float16, and are rounded the other way
    for _ in range(2):
        cluster.add_node(num_cpus=1)  # so that there is room after a death
    ear = Ear(**{"dagger_aggregate[1]": lambda: kill_node(cluster), "dagger_train[2]": lambda: kill_node(cluster)})
    run_text(stores["disturbed"], *TEXT_CHANGES, *on_workers(cluster), reporter=ear)
    assert files(stores["disturbed"]) == files(stores["together"])
    assert sum(text.startswith("a worker has died") for text in ear.warnings) >= 2


def test_judging_is_the_same_though_a_worker_is_killed_and_asks_with_the_keys_of_the_workers(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = {name: tmp_path / name for name in ("alone", "shared")}
    stores["alone"].mkdir()
    monkeypatch.setenv("OPENAI_API_KEY", "the-drivers")
    monkeypatch.setattr("tasks.text.g_eval.SHARD_REQUESTS", 3)

    def judge(asked: Asked) -> Answer:
        time.sleep(0.05)
        return says(f"Score: {1 + len(asked.text) % 5}")

    judged = (*TEXT_CHANGES, "evaluation.judge.criteria=papers", "evaluation.judge.requests_in_flight=2")
    with chat_server(judge) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)  # the driver has it, the workers do not
        run_text(Store(stores["alone"]), *judged)
        alone = list(server.asked)
        shutil.copytree(stores["alone"], stores["shared"])  # with what was trained: workers would not to the same byte
        for judged_before in ("artifacts/g_eval", "judgements"):
            shutil.rmtree(stores["shared"] / judged_before)
        ear = Ear(**{"g_eval[teacher]": lambda: kill_worker(cluster)})
        run_text(Store(stores["shared"]), *judged, *on_workers(cluster), reporter=ear)
        shared = server.asked[len(alone) :]
    assert files(Store(stores["shared"])) == files(Store(stores["alone"]))
    assert any(text.startswith("a worker has died") for text in ear.warnings)
    assert {each.text for each in shared} == {each.text for each in alone}
    assert len(shared) <= len(alone) + 2, "what was in flight is all that is asked again"
    keys = [each.headers["authorization"] for each in shared]
    assert keys == ["Bearer the-drivers"] + ["Bearer none"] * (len(shared) - 1), "the driver asks the check alone"


def test_a_driver_that_is_killed_leaves_nobody_behind_and_is_gone_on_with(
    together: Store, cluster: Any, tmp_path: Path
) -> None:
    families = [kill_driver(tmp_path, sign) for sign in ("score-*/outputs-*.parquet", "llmr-*/step-*")]
    store = run_pairs(tmp_path, Ear(), *on_workers(cluster))
    assert files(store) == files(together)
    wait_for(lambda: not any(map(is_alive, chain(*families))))  # Ray's own take a minute to miss their node


def kill_driver(home: Path, sign: str) -> list[int]:
    """Start the run in a process of its own, with a Ray of its own, and kill it once a checkpoint is there.

    Its workers are dead soon. Returns it and all that it has started.
    """
    options = [word for change in CHANGES for word in ("--set", change)]
    command = [sys.executable, "-m", "flows.cli.main", "run", "tiny", "--prefect-file", str(RECIPES), *options]
    environment = os.environ | {"DISTILL_HOME": str(home), "PYTHONPATH": str(PROJECT)}
    driver = subprocess.Popen([*command, "--engine", "ray", "--workers", "2"], cwd=PROJECT, env=environment)
    wait_for(lambda: list((home / ".checkpoints").glob(sign)) != [])
    family = descendants(driver.pid)
    workers = list(filter(is_worker, family))
    assert len(workers) == 2
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(map(is_alive, workers)), 20)
    return family


def descendants(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        found += children(each)
    return found[1:]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it is read, or just then
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
