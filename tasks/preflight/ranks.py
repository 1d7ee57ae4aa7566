"""Whether all workers of a cluster have rows to train on."""

from collections.abc import Mapping
from typing import Any

from tasks.engine.settings import RuntimeSettings
from tasks.store.keys import flatten

ROWS = ("micro_batch_rows", "batch_rows")  # that are trained on at once, and shared out
TRAINING = {"method", "pre_distill", "fit", "pretrain"}  # the settings of stages that train


def idle_workers(runtime: RuntimeSettings, parameters: Mapping[str, Any]) -> str | None:
    """A remark where more workers are wanted than have a row each in some batch; `parameters`: a run's, as JSON."""
    if runtime.workers is None:
        return None
    rows = {name: value for name, value in flatten(dict(parameters)) if name.split(".")[-1] in ROWS}
    few = {name: value for name, value in rows.items() if TRAINING & set(name.split(".")) and value < runtime.workers}
    if not few:
        return None
    told = ", ".join(f"{name} is {value}" for name, value in few.items())
    return f"of {runtime.workers} workers some have nothing to train on, for a batch is shared out row by row: {told}"
