"""Whether the workers that a run wants fit on this machine, and whether all have rows to train on."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from tasks.engine.settings import RuntimeSettings
from tasks.store.keys import flatten

TRAINING = {"method", "pre_distill", "fit", "pretrain"}  # the settings of stages that train


def no_room(runtime: RuntimeSettings) -> str | None:
    """Why a Ray of the run's own cannot have its workers, and what to do; None if this machine has CPUs enough.

    What a cluster has is not known before it is joined, nor how many GPUs there are; the engine looks at those, and at
    the Ray that this process may have joined already.
    """
    workers, threads, cpus = runtime.workers or 1, runtime.threads or 1, os.cpu_count() or 1
    ray = sys.modules.get("ray")
    elsewhere = runtime.address is not None or (ray is not None and ray.is_initialized())
    if runtime.engine != "ray" or elsewhere or workers * threads <= cpus:
        return None
    most = f"set runtime.workers to {cpus // threads} at most" if threads <= cpus else f"set threads to {cpus} at most"
    each = f"{threads} CPU{'s' if threads > 1 else ''}"
    return (
        f"{workers} worker{'s' if workers > 1 else ''} of {each} each do not fit on this machine's {cpus}\n"
        f"{most}, or runtime.address to a cluster"
    )


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
