"""A training loop inside a stage: progress, checkpoints, the log, and going on after a kill."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from kd_core.models.backends.graphs import in_graphs
from kd_core.models.backends.recomputing import recomputing
from kd_core.models.backends.sharded import weights
from kd_core.models.policy import PACKED, Model, backend_of
from kd_core.rollout.responses import NotFiniteError
from kd_core.train.ranks import Ranks
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState
from tasks.compute.alarms import Alarms
from tasks.compute.models import LoadedModel, save_trained
from tasks.compute.track import tracked
from tasks.store.stage import Build

Loop = Callable[[TrainState], Iterator[StepMetrics]]
SHOWN = ("loss", "validation_loss", "reward", "validation_reward", "length", "truncated", "validation_equal")


class Gathered(Protocol):
    """What a stage gathers while it trains, beside the log: it is in every checkpoint, and in what the stage makes."""

    def add(self, row: StepMetrics) -> None:
        """Take in what an update has logged."""

    def save(self, directory: Path) -> None:
        """Write all that there is."""

    def load(self, directory: Path) -> None:
        """Go on from what was saved."""


def run_training(
    build: Build,
    loaded: LoadedModel,
    optimizer: OptimizerSettings,
    loop: Loop,
    num_steps: int,
    gathered: Gathered | None = None,
) -> list[StepMetrics]:
    """Train a model by `loop`, from the last checkpoint to the end: model/ (or adapter/) and training_log.parquet.

    Checkpoints are written as they fall due, and the run's trackers are told of each row. Of several ranks, the first
    alone does so, and writes what the stage leaves. Returns one row an update. Raises ValueError if training blows up.
    """
    ranks = Ranks.here()
    state, log = TrainState.start(loaded.model, optimizer, ranks), list[StepMetrics]()
    alarms = Alarms(build.warn)
    latest = ranks.agreed(build.checkpoints.latest() if ranks.is_first else None)
    if latest is not None:
        log = state.load(latest[1])
        build.progress(state.step, num_steps, "steps")
        alarms.warn = partial(build.warn, again=True)
        for row in log:
            alarms.look(row)
        alarms.warn = build.warn
        if gathered is not None:
            gathered.load(latest[1])

    def save(step: int) -> None:
        tensors = state.tensors()
        if ranks.is_first:
            build.checkpoints.save(step, partial(write, tensors))

    def write(tensors: Mapping[str, Tensor], directory: Path) -> None:
        state.save(directory, log, tensors)
        if gathered is not None:
            gathered.save(directory)

    try:
        recompute = recomputing(loaded.model) if build.runtime.gradient_checkpointing else nullcontext()
        replay = replaying(build, loaded.model)
        telling = tracked(build) if ranks.is_first else nullcontext(lambda row: None)
        with recompute, replay, telling as tell:
            for row in loop(state):
                check_finite(row)
                log.append(row)
                alarms.look(row)
                tell(row)
                if gathered is not None:
                    gathered.add(row)
                shown = {name: row.values[name] for name in SHOWN if name in row.values}
                build.progress(row.step, num_steps, "steps", **shown)
                if 0 < row.step < num_steps and ranks.agreed(build.checkpoints.due()):
                    save(row.step)
    except NotFiniteError as error:
        raise ValueError(_blown_up(build.stage, state.step, error)) from None
    if last_validation(log).get("kept_step") == 0:
        build.warn("no update made the student better by what is kept: it ends as it started; see keep and min_variety")
    state.finish()
    whole = weights(loaded.model, wanted=ranks.is_first)
    if ranks.is_first:
        save_trained(loaded, build.dir, whole)
        write_log(build.dir / "training_log.parquet", log)
        if gathered is not None:
            gathered.save(build.dir)
    return log


def replaying(build: Build, model: Model) -> AbstractContextManager[None]:
    """Within it, a model writes by CUDA graphs where the run asks for them; one that cannot is said, once a run."""
    if not build.runtime.cuda_graphs:
        return nullcontext()
    if backend_of(model) is PACKED:
        return in_graphs(model)
    build.run.warn_once(
        f"runtime.cuda_graphs does nothing for a model of type {model.config.model_type!r}, which writes without them; "
        "leave it at false"
    )
    return nullcontext()


def mean_of(log: Sequence[StepMetrics], name: str) -> float:
    """Mean of a logged value over the updates that logged it."""
    values = [row.values[name] for row in log if name in row.values]
    return sum(values) / len(values)


def mean_of_last_tenth(log: Sequence[StepMetrics], name: str) -> float:
    """Mean of a logged value over the last tenth of the updates."""
    return mean_of(log[-max(1, log[-1].step // 10) :], name)


def last_validation(log: Sequence[StepMetrics]) -> dict[str, float]:
    """The validation values of the weights that are kept; their step too, where it need not be the last."""
    looks = [row for row in log if any(name.startswith("validation_") for name in row.values)]
    kept = next((row for row in reversed(looks) if row.values.get("validation_best", 1.0)), looks[-1])
    values = {name: value for name, value in kept.values.items() if name.startswith("validation_")}
    return values | {"kept_step": float(kept.step)} if values.pop("validation_best", None) else values


def check_finite(row: StepMetrics) -> None:
    """Raise NotFiniteError for a validation value that is not finite, before the broken model is saved."""
    for name, value in row.values.items():
        if name.startswith("validation_") and not math.isfinite(value):
            raise NotFiniteError(f"{name} is {value}")


def _blown_up(stage: str, done: int, error: NotFiniteError) -> str:
    """The message: stage, value and step; what to do in a second line."""
    advice = "lower the learning rate of this stage"
    if done == 0:  # nothing has been learnt that could have broken anything
        advice = "this is before any update: look at the weights and the dtype of teacher and student"
    return f"{stage}: {str(error).splitlines()[0]} at step {done + 1}\n{advice}"


def write_log(path: Path, log: list[StepMetrics]) -> None:
    """The log as (step, metric, value) rows."""
    rows = [{"step": row.step, "metric": name, "value": value} for row in log for name, value in row.values.items()]
    schema = pa.schema([("step", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
