"""`runtime.track`: each row of a training's log reaches each tracker once, and nothing else is different for it."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from kd_core.models.shapes import T5Shape
from kd_core.train.state import OptimizerSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.compute import track
from tasks.engine.settings import RuntimeSettings
from tasks.pairs.prepare import prepare
from tasks.pairs.teacher import TeacherSettings, teacher
from tasks.store.artifacts import Artifact, Store
from tasks.store.checkpoints import Checkpoints
from tasks.store.progress import NullReporter
from tasks.store.stage import Run, open_run
from tests.tasks.tiny_runs import write_pairs

SHAPE = T5Shape(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2)
STEPS = 4
VARIABLES = (
    *(
        "WANDB_MODE",
        "WANDB_API_KEY",
        "WANDB_PROJECT",
        "WANDB_DIR",
        "WANDB_ERROR_REPORTING",
        "TRACKIO_DIR",
        "TRACKIO_SPACE_ID",
    ),
    *("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DISABLE_TELEMETRY"),
    *("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"),
)
Curves = dict[str, list[tuple[int, float]]]


class Ear(NullReporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def warning(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture(autouse=True)
def nothing_said_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what the trackers set themselves is taken back
        monkeypatch.delenv(name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def train(
    store: Store, *trackers: str, learning_rate: float = 0.01, cell: str = "", **more: Any
) -> tuple[Run, Ear, Artifact]:
    """A teacher that is fitted in four steps: the run, what was warned of, and the artifact."""
    ear, optimizer = Ear(), OptimizerSettings(learning_rate=learning_rate)
    fit = SupervisedSettings(
        epochs=STEPS, max_steps=STEPS, max_source_tokens=16, max_target_tokens=8, optimizer=optimizer
    )
    settings = TeacherSettings(shape=SHAPE, vocab_size=40, fit=fit)
    checkpoint_seconds, part_of = more.get("checkpoint_seconds", 30.0), more.get("part_of", "")
    runtime = RuntimeSettings(device="cpu", threads=1, checkpoint_seconds=checkpoint_seconds, track=trackers)  # type: ignore[arg-type]
    with open_run(store, name="mine", runtime=runtime, reporter=ear, part_of=part_of) as run, run.serving(cell):
        corpus = prepare(dataset=write_pairs(store.root / "pairs.csv"), seed=0, limit=None)
        made = teacher(corpus=corpus, settings=settings, seed=0)
    return run, ear, made


def logged(artifact: Artifact) -> Curves:
    """training_log.parquet, by metric."""
    curves: Curves = {}
    for row in pq.read_table(artifact.path / "training_log.parquet").to_pylist():
        curves.setdefault(row["metric"], []).append((row["step"], row["value"]))
    return curves


def event_files(store: Store) -> dict[str, Curves]:
    """What TensorBoard reads: name of each of its runs -> the curves, in float32 as it keeps them."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(store.root / "track" / "tensorboard")).Reload()
    return {
        run: {tag: [(each.step, each.value) for each in multiplexer.Scalars(run, tag)] for tag in tags["scalars"]}
        for run, tags in multiplexer.Runs().items()
    }


def near(curves: Curves) -> dict[str, Any]:
    return {name: [(step, pytest.approx(value, rel=1e-6)) for step, value in curve] for name, curve in curves.items()}


def interrupt_after_a_checkpoint(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    save = Checkpoints.save

    def saved(checkpoints: Checkpoints, step: int, write: Any) -> None:
        save(checkpoints, step, write)
        if step == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", saved)


def test_every_row_of_a_stage_is_in_its_event_files(store: Store) -> None:
    run, ear, made = train(store, "tensorboard")
    assert ear.heard == []
    curves = logged(made)
    assert [step for step, _ in curves["loss"]] == [1, 2, 3, 4]
    assert event_files(store) == {f"{run.run_id}/teacher": near(curves)}


def test_a_stages_settings_are_beside_its_curves(store: Store) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    run, _, _ = train(store, "tensorboard", learning_rate=0.0125)
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(store.root / "track" / "tensorboard")).Reload()
    (text,) = multiplexer.Tensors(f"{run.run_id}/teacher", "settings/text_summary")
    assert b'"learning_rate": 0.0125' in text.tensor_proto.string_val[0]


def test_a_hit_is_told_to_nobody(store: Store) -> None:
    first, _, _ = train(store, "tensorboard")
    train(store, "tensorboard")
    assert list(event_files(store)) == [f"{first.run_id}/teacher"]


def test_a_comparison_names_its_cells(store: Store) -> None:
    train(store, "tensorboard", cell="LLMR, alpha=0.5, seed=1", part_of="compare-1")  # as another process does its work
    assert list(event_files(store)) == ["compare-1/LLMR,-alpha=0.5,-seed=1/teacher"]


def test_a_resumed_run_goes_on_with_the_next_step(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after_a_checkpoint(monkeypatch, at=2)
    with pytest.raises(KeyboardInterrupt):
        train(store, "tensorboard", checkpoint_seconds=0.0)
    monkeypatch.undo()
    run, _, made = train(store, "tensorboard")
    steps = {name: [step for step, _ in curves["loss"]] for name, curves in event_files(store).items()}
    assert steps.pop(f"{run.run_id}/teacher") == [3, 4]
    assert list(steps.values()) == [[1, 2]]
    assert len(logged(made)["loss"]) == STEPS


def test_what_is_made_is_the_same_with_and_without_trackers(tmp_path: Path) -> None:
    tracked, plain = (train(Store(tmp_path / name), *told)[2] for name, told in (("a", ["tensorboard"]), ("b", [])))
    assert tracked.key == plain.key
    assert tracked.manifest().files == plain.manifest().files
    assert tracked.manifest().stats == plain.manifest().stats


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_said_once_a_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    ear, made = Ear(), []
    with open_run(store, name="mine", runtime=RuntimeSettings(threads=1, track=(name,)), reporter=ear):  # type: ignore[arg-type]
        corpus = prepare(dataset=write_pairs(store.root / "pairs.csv"), seed=0, limit=None)
        for seed in (0, 1):
            fit = SupervisedSettings(epochs=2, max_steps=2, max_source_tokens=16, max_target_tokens=8)
            made.append(
                teacher(corpus=corpus, settings=TeacherSettings(shape=SHAPE, vocab_size=40, fit=fit), seed=seed)
            )
    (said,) = ear.heard
    assert said.startswith(f"{name} is not installed, and the run goes on without it: pip install {name}")
    assert [len(logged(each)["loss"]) for each in made] == [2, 2]
    assert "warnings" not in made[0].manifest().stats  # it tells nothing of the model


class FakeWandb(SimpleNamespace):
    """W&B as it is called: notes its runs, and fails at a step."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__(Settings=dict, begun=[], steps=[], ended=[], fails_at=fails_at, heard=threading.Event())
        self.heard.set()  # by whomever it waits for at the end

    def init(self, **settings: Any) -> FakeWandb:
        self.begun.append(settings)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.steps.append(step)
        if step == self.fails_at:
            raise RuntimeError("no answer to secret-key-123 at http://anna:hidden-word@host/\nand so on")

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)
        assert self.heard.wait(30)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]
    return module


def test_a_tracker_that_fails_half_way_is_said_once_and_left_out_and_no_key_is_told(
    store: Store, fake: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.fails_at = 2
    monkeypatch.setenv("WANDB_API_KEY", "secret-key-123")
    run, ear, made = train(store, "wandb", "tensorboard")
    assert ear.heard == ["wandb fails, and the run goes on without it: no answer to [hidden] at http://[hidden]host/"]
    assert fake.steps == [1, 2]
    assert fake.ended == [1]  # it is let go of all the same
    assert len(logged(made)["loss"]) == STEPS
    assert event_files(store) == {f"{run.run_id}/teacher": near(logged(made))}  # the other one goes on


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_tracker_that_does_not_end_its_run_is_not_waited_for(
    store: Store, fake: FakeWandb, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    monkeypatch.setattr(track, "CLOSE_SECONDS", 0.05)
    fake.fails_at = fails_at
    fake.heard.clear()
    _, ear, made = train(store, "wandb")
    fake.heard.set()
    (said,) = ear.heard
    why = "no answer to " if fails_at else "its run has not ended in 0.05 seconds"
    assert said.startswith(f"wandb fails, and the run goes on without it: {why}")
    assert len(logged(made)["loss"]) == STEPS


def test_wandb_is_offline_unless_the_environment_says_where_to(
    store: Store, tmp_path: Path, fake: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, _ = train(store, "wandb")
    monkeypatch.setenv("WANDB_API_KEY", "secret-key-123")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(store, "wandb", learning_rate=0.02)
    first, second = fake.begun
    assert (first["mode"], first["project"], first["name"]) == ("offline", "distill", f"{run.run_id}/teacher")
    assert first["dir"] == str(store.root / "track" / "wandb")
    assert first["config"]["settings"]["fit"]["optimizer"]["learning_rate"] == 0.01
    assert (second["mode"], second["project"], second["dir"]) == (None, "theirs", str(tmp_path))
    assert "secret-key-123" not in str(fake.begun)
    assert fake.ended == [0, 0]


def test_a_stage_that_is_stopped_ends_its_tracker_run_as_that(
    store: Store, fake: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after_a_checkpoint(monkeypatch, at=2)
    with pytest.raises(KeyboardInterrupt):
        train(store, "wandb", checkpoint_seconds=0.0)
    assert fake.ended == [1]


def test_no_tracker_is_imported_unless_asked_for() -> None:
    program = (
        "import sys, tasks.compute.training, flows.distill_outline\n"
        "print({'tensorboard', 'wandb', 'mlflow', 'trackio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def installed(name: str) -> None:
    if importlib.util.find_spec(name) is None:  # not imported: that is for the tracker to do
        pytest.skip(f"{name} is not installed: pip install -c constraints.txt -e '.[{name}]'")


@pytest.mark.filterwarnings("ignore")  # theirs
class TestForReal:
    """The others by their offline modes, where they are installed."""

    def test_wandb_keeps_an_offline_run(self, store: Store) -> None:
        installed("wandb")
        run, ear, _ = train(store, "wandb")
        assert ear.heard == []
        (kept,) = (store.root / "track" / "wandb" / "wandb").glob("offline-run-*/*.wandb")
        content = kept.read_bytes()
        assert b"validation_loss" in content
        assert f"{run.run_id}/teacher".encode() in content

    def test_mlflow_has_every_row_and_the_settings(self, store: Store) -> None:
        installed("mlflow")
        run, ear, made = train(store, "mlflow")
        assert ear.heard == []
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{store.root / 'track' / 'mlflow' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("distill")
        assert experiment is not None
        (found,) = client.search_runs([experiment.experiment_id])
        assert (found.info.run_name, found.info.status) == (f"{run.run_id}/teacher", "FINISHED")
        assert found.data.params["settings.fit.optimizer.learning_rate"] == "0.01"
        for name, curve in logged(made).items():
            history = client.get_metric_history(found.info.run_id, name)
            assert [(each.step, each.value) for each in history] == curve

        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"

    def test_processes_at_once_make_one_mlflow_experiment(self, tmp_path: Path) -> None:
        installed("mlflow")
        program = (
            "import sys, pathlib, mlflow\nfrom tasks.compute.track import MLflow, Told\n"
            "print(flush=True)\nsys.stdin.readline()\n"
            "MLflow(Told(('run', sys.argv[1]), {}, pathlib.Path(sys.argv[2]))).close(True)\n"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", program, str(number), str(tmp_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # all have imported what they need
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        errors = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], errors

        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("distill")
        assert experiment is not None
        assert len(client.search_runs([experiment.experiment_id])) == 3

    def test_an_mlflow_that_does_not_answer_is_said_once(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        installed("mlflow")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:hidden-word@127.0.0.1:9")
        _, ear, made = train(store, "mlflow")
        (said,) = ear.heard
        assert said.startswith("mlflow fails, and the run goes on without it: ")
        assert "hidden-word" not in said
        assert len(logged(made)["loss"]) == STEPS

    def test_trackio_has_every_row(self, store: Store) -> None:
        installed("trackio")
        run, ear, _ = train(store, "trackio")
        assert ear.heard == []
        database = sqlite3.connect(store.root / "track" / "trackio" / "distill.db")
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
        database.close()
        assert [(name, step) for name, step, _ in rows] == [(f"{run.run_id}/teacher", step) for step in range(1, 5)]
