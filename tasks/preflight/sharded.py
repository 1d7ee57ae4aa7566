"""Whether the models of a run can be shared out among the workers that train, or spread over devices of each."""

from collections.abc import Callable, Mapping
from typing import Any

from tasks.engine.settings import Sharded


def check_sharded(sharded: Sharded, settings: Mapping[str, Any]) -> None:
    """A model that is to be sharded is one that can be, as far as it is on this machine. Raises ValueError if not."""
    if sharded == "none":
        return
    if "windows" in settings:
        raise ValueError("runtime.sharded is for runs on pairs, and this one is on running text\nleave it at none")
    from tasks.compute.models import UNSHARDED

    for role in ("teacher", "student"):
        if sharded in (role, "both") and role in settings:
            _check(role, settings)
    if sharded == "teacher" and "teacher" in settings:
        _check_no_adapter_on_it(settings["teacher"], settings["student"], UNSHARDED)


def check_spread(devices: int, settings: Mapping[str, Any]) -> None:
    """A teacher that is to be spread is one that can be, as far as it is on this machine. Raises ValueError if not.

    On running text so is the student, which runs free as its teacher does.
    """
    if devices == 1 or "teacher" not in settings:
        return
    from tasks.compute.models import UNSPREAD, check_spreadable

    teacher, student = settings["teacher"], settings["student"]
    _check_family("teacher", teacher, "spread", UNSPREAD, check_spreadable)
    is_teachers = getattr(student, "from_", None) is not None
    if "windows" in settings and not is_teachers:
        _check_family("student", student, "spread", UNSPREAD, check_spreadable)
    _check_no_adapter_on_it(teacher, student, UNSPREAD)


def _check(role: str, settings: Mapping[str, Any]) -> None:
    from kd_core.train.state import PRECISIONS
    from tasks.compute.models import UNSHARDED, check_shardable

    model = settings[role]
    if getattr(model, "lora", None) is not None:
        raise ValueError(f"a student with an adapter is not sharded\n{UNSHARDED}, or leave out student.lora")
    if role == "student":
        for name in ("pre_distill", "method"):
            optimizer = getattr(settings.get(name), "optimizer", None)
            if optimizer is not None and optimizer.precision == "bfloat16_weights":
                raise ValueError(f"{name}.optimizer: a sharded student has no precision bfloat16_weights\n{PRECISIONS}")
    origin = settings["teacher"] if getattr(model, "from_", None) is not None else model
    _check_family(role, origin, "sharded", UNSHARDED, check_shardable)


def _check_no_adapter_on_it(teacher: Any, student: Any, advice: str) -> None:
    is_on_it = getattr(student, "from_", None) is not None or student.name == teacher.name
    if getattr(student, "lora", None) is not None and is_on_it:
        raise ValueError(f"a student that is an adapter on its teacher holds the teacher's weights whole\n{advice}")


def _check_family(role: str, model: Any, done: str, advice: str, check: Callable[[Any], None]) -> None:
    from tasks.preflight.models import described

    if model.shape is not None:
        raise ValueError(f"{role}.shape describes a small model of a family that is not {done}\n{advice}")
    if getattr(model, "endpoint", None) is not None:
        raise ValueError(f"the teacher is behind a server: there is nothing of it to be {done}\n{advice}")
    found = described(model)
    if found is None:
        return
    try:
        check(found)
    except ValueError as error:
        raise ValueError(f"{role}: {error}") from None
