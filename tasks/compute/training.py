"""A training loop inside a stage: progress, checkpoints, the log, and going on after a kill."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.training import NotFiniteError, StepMetrics, TrainState
from tasks.store.stage import Build

Loop = Callable[[TrainState], Iterator[StepMetrics]]
SHOWN = ("loss", "validation_loss", "reward", "validation_reward", "length", "truncated")


def run_training(
    build: Build,
    state: TrainState,
    loop: Loop,
    num_steps: int,
    *,
    save_more: Callable[[Path], None] | None = None,
    load_more: Callable[[Path], None] | None = None,
    after_step: Callable[[StepMetrics], None] | None = None,
) -> list[StepMetrics]:
    """Run `loop` to its end from the last checkpoint, writing checkpoints as they fall due. Returns one row a step.

    `save_more` and `load_more` carry what else the stage has gathered. Raises ValueError if training blows up.
    """
    log: list[StepMetrics] = []
    latest = build.checkpoints.latest()
    if latest is not None:
        log = state.load(latest[1])
        if load_more is not None:
            load_more(latest[1])

    def write(directory: Path) -> None:
        state.save(directory, log)
        if save_more is not None:
            save_more(directory)

    try:
        for row in loop(state):
            check_finite(row)
            log.append(row)
            if after_step is not None:
                after_step(row)
            shown = {name: row.values[name] for name in SHOWN if name in row.values}
            build.progress(row.step, num_steps, "steps", **shown)
            if build.checkpoints.due() and row.step < num_steps:
                build.checkpoints.save(row.step, write)
    except NotFiniteError as error:
        raise ValueError(_blown_up(build.stage, state.step, error)) from None
    return log


def check_finite(row: StepMetrics) -> None:
    """What is seen of the validation set is finite too. Raises NotFiniteError if not, before a broken model is kept."""
    for name, value in row.values.items():
        if name.startswith("validation_") and not math.isfinite(value):
            raise NotFiniteError(f"{name} is {value}")


def _blown_up(stage: str, done: int, error: NotFiniteError) -> str:
    """What is wrong, where, and what to do about it in a second line."""
    advice = "lower the learning rate of this stage"
    if done == 0:  # nothing has been learnt that could have broken anything
        advice = "this is before any update: look at the weights and the dtype of teacher and student"
    return f"{stage}: {str(error).splitlines()[0]} at step {done + 1}\n{advice}"


def write_log(path: Path, log: list[StepMetrics]) -> None:
    """The log as (step, metric, value) rows."""
    rows = [{"step": row.step, "metric": name, "value": value} for row in log for name, value in row.values.items()]
    schema = pa.schema([("step", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
