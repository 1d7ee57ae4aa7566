"""Whether all workers of a cluster have rows to train on."""

from collections.abc import Mapping
from typing import Any

from tasks.engine.settings import RuntimeSettings
from tasks.store.keys import flatten

TRAINING = {"method", "pre_distill", "fit", "pretrain"}  # the settings of stages that train


def idle_workers(runtime: RuntimeSettings, parameters: Mapping[str, Any]) -> str | None:
    """A remark where more workers are wanted than have a row each in some update; `parameters`: a run's, as JSON.

    Rows of pairs are counted for sources as long as they may be.
    """
    if runtime.workers is None:
        return None
    found = dict(flatten(dict(parameters)))
    stages = {
        name.removesuffix(".batch.micro_batch_rows") for name in found if name.endswith(".batch.micro_batch_rows")
    }
    rows = {f"{stage}.batch": _rows_of_pairs(found, stage) for stage in stages}
    rows |= {name: value for name, value in found.items() if name.endswith(".batch_rows")}
    few = {name: n for name, n in rows.items() if TRAINING & set(name.split(".")) and n < runtime.workers}
    if not few:
        return None
    told = ", ".join(f"{n} by {name}" for name, n in sorted(few.items()))
    return f"of {runtime.workers} workers some have nothing to train on: an update may have no more rows than {told}"


def _rows_of_pairs(found: Mapping[str, Any], stage: str) -> int:
    """Of an update."""
    names = ("micro_batch_rows", "micro_batch_tokens", "micro_batches")
    rows, tokens, times = (found[f"{stage}.batch.{name}"] for name in names)
    longest = found.get(f"{stage}.max_source_tokens")
    return int(times * min(rows, max(1, tokens // longest) if longest else rows))
