"""Whether the models of a run can be shared out among the workers that train."""

from collections.abc import Mapping
from typing import Any

from tasks.engine.settings import Sharded


def check_sharded(sharded: Sharded, settings: Mapping[str, Any]) -> None:
    """A model that is to be sharded is one that can be, as far as it is on this machine. Raises ValueError if not."""
    if sharded == "none":
        return
    if "windows" in settings:
        raise ValueError("runtime.sharded is for runs on pairs, and this one is on running text\nleave it at none")
    for role in ("teacher", "student"):
        if sharded in (role, "both") and role in settings:
            _check(role, settings)


def _check(role: str, settings: Mapping[str, Any]) -> None:
    from kd_core.train.state import PRECISIONS
    from tasks.compute.models import UNSHARDED, check_shardable
    from tasks.preflight.models import described

    model = settings[role]
    origin = settings["teacher"] if getattr(model, "from_", None) is not None else model
    if origin.shape is not None:
        raise ValueError(f"{role}.shape describes a small model of a family that is not sharded\n{UNSHARDED}")
    if getattr(model, "endpoint", None) is not None:
        raise ValueError(f"the teacher is behind a server: there is nothing of it to be sharded\n{UNSHARDED}")
    if getattr(model, "lora", None) is not None:
        raise ValueError(f"a student with an adapter is not sharded\n{UNSHARDED}, or leave out student.lora")
    if role == "student":
        for name in ("pre_distill", "method"):
            optimizer = getattr(settings.get(name), "optimizer", None)
            if optimizer is not None and optimizer.precision == "bfloat16_weights":
                raise ValueError(f"{name}.optimizer: a sharded student has no precision bfloat16_weights\n{PRECISIONS}")
    found = described(origin)
    if found is None:
        return
    try:
        check_shardable(found)
    except ValueError as error:
        raise ValueError(f"{role}: {error}") from None
