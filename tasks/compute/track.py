"""Where else a training stage's log goes while it trains: TensorBoard, Weights & Biases, MLflow, Trackio.

    with tracked(build) as tell:
        for row in loop(state):
            tell(row)

A stage that trains is one run of a tracker, called `<run id>/<stage>`, in a comparison `<run id>/<cell>/<stage>`, with
the stage's settings as its config; one that is a hit trains nothing, and is told to nobody. A run that is resumed has
an id of its own, for trackers as in the store: there its stage begins at the step after the checkpoint, with that
step's number, and no tracker run holds a row twice. What was computed between the checkpoint and the kill is computed
again, and stands in both, the same.

Files lie under <home>/track/<tracker>/. Nothing leaves the machine unless the tracker's own environment variables say
so: WANDB_API_KEY or WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL. A tracker that is not
installed, cannot be reached or fails half-way is said once a run and left out of the rest (of cells side by side, in
each process that finds it out); nothing here changes a result, and nothing is in a stage's key.
"""

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kd_core.train.state import StepMetrics
from tasks.messages import first_line, without_secrets
from tasks.store.keys import flatten
from tasks.store.stage import Build

PROJECT = "distill"  # or what WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME say
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
MOST_PARAMS, LONGEST_PARAM = 100, 500  # what every MLflow server takes in one request, and in characters of a value
CLOSE_SECONDS = 10.0  # the longest that a stage waits for a tracker to end its run: it may be talking to nobody


@dataclass(frozen=True)
class Told:
    """What a tracker is told before the rows: whose they are, under which settings, and where its own files go."""

    parts: tuple[str, ...]  # run id, cell of a comparison, stage
    settings: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """Of the tracker's run."""
        return "/".join(self.parts)


class Tracker(Protocol):
    """One stage's run in a tracker. Any call may raise anything."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """What one update has logged."""

    def close(self, finished: bool) -> None:
        """The stage has ended: `finished`, or by an error."""


class TensorBoard:
    """Event files, one folder a stage. To look at them: tensorboard --logdir <home>/track/tensorboard."""

    def __init__(self, told: Told) -> None:
        from torch.utils.tensorboard import SummaryWriter

        names = [re.sub(r"[^\w.,=\[\]-]+", "-", part) for part in told.parts]
        self._writer = SummaryWriter(str(told.folder.joinpath(*names)), flush_secs=10)
        self._writer.add_text("settings", f"```\n{json.dumps(told.settings, indent=2, ensure_ascii=False)}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, finished: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B. Without WANDB_API_KEY or WANDB_MODE it is offline, and `wandb sync` can send it later."""

    def __init__(self, told: Told) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to its makers
        import wandb

        said = os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=told.parts[0],
            name=told.name,
            config=dict(told.settings),
            dir=os.environ.get("WANDB_DIR") or str(told.folder),
            mode=None if said else "offline",  # it would ask on a terminal
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),  # the terminal is the run's
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow, in a database of its own or where MLFLOW_TRACKING_URI says."""

    def __init__(self, told: Told) -> None:
        # it tells its makers of its use, and waits for minutes on a server that is not there, or does not answer
        own = {"DISABLE_TELEMETRY": "true", "HTTP_REQUEST_MAX_RETRIES": "1", "HTTP_REQUEST_TIMEOUT": "10"}  # seconds
        for name, value in own.items():
            os.environ.setdefault(f"MLFLOW_{name}", value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, uri, files = Metric, os.environ.get("MLFLOW_TRACKING_URI"), told.folder.resolve()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        place = None if uri else (files / "artifacts").as_uri()
        with _alone(files / "lock"):  # two cells at once would both make the tables, or the experiment, and one fail
            self._client = MlflowClient(uri or f"sqlite:///{files / 'mlflow.db'}")
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name, artifact_location=place)
        self._run_id = self._client.create_run(experiment, run_name=told.name).info.run_id
        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in flatten(told.settings)]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + MOST_PARAMS])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "FAILED")


class Trackio:
    """A run of Trackio. To look at it: TRACKIO_DIR=<home>/track/trackio trackio show."""

    def __init__(self, told: Told) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(told.folder.resolve()))  # read when it is imported
        import trackio

        self._run = trackio.init(
            PROJECT,
            name=told.name,
            group=told.parts[0],
            config=dict(told.settings),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Told], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


@contextmanager
def tracked(build: Build) -> Iterator[Callable[[StepMetrics], None]]:
    """A function that tells a row of the log to every tracker of the run. It raises nothing, and neither does this."""
    run, opened = build.run, dict[str, Tracker]()

    @contextmanager
    def left_out_if_it_fails(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            run.untracked.add(name)
            run.reporter.warning(_lost(name, error))

    def start(name: str) -> Tracker:
        parts = (run.record.part_of or run.run_id, run.cell, build.stage)
        told = Told(tuple(filter(None, parts)), build.settings, build.store_root / "track" / name)
        told.folder.mkdir(parents=True, exist_ok=True)
        return TRACKERS[name](told)

    def tell(row: StepMetrics) -> None:
        for name, tracker in list(opened.items()):
            with left_out_if_it_fails(name):
                tracker.log(row.step, row.values)
            if name in run.untracked:
                with suppress(Exception):  # what there is to say of it has been said
                    _close(opened.pop(name), finished=False)

    for name in map(str, dict.fromkeys(build.runtime.track)):
        if name not in run.untracked:
            with left_out_if_it_fails(name):
                opened[name] = start(name)
    finished = False
    try:
        yield tell
        finished = True
    finally:
        for name, tracker in opened.items():
            with left_out_if_it_fails(name):
                _close(tracker, finished)


def _close(tracker: Tracker, finished: bool) -> None:
    """End its run, waiting for CLOSE_SECONDS at most. Raises what it raises, and TimeoutError."""
    failures: list[Exception] = []

    def close() -> None:
        try:
            tracker.close(finished)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=close, daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"its run has not ended in {CLOSE_SECONDS:g} seconds")
    if failures:
        raise failures[0]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a file's lock, so that processes do one after another what is done here."""
    with path.open("w", encoding="utf-8") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lost(name: str, error: Exception) -> str:
    """What is said of a tracker that is left out."""
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return f"{name} is not installed, and the run goes on without it: pip install {PACKAGES[name]}"
    return f"{name} fails, and the run goes on without it: {without_secrets(first_line(error))}"
