"""Where a stage computes."""

import gc
from collections.abc import Iterable
from dataclasses import replace

import torch

from kd_core.precision import Precision, fast_precision, precisions
from tasks.engine.settings import RuntimeSettings
from tasks.messages import first_line


def device_of(runtime: RuntimeSettings) -> torch.device:
    """The device that the run names, or the best there is; sets the thread count where the run names one.

    Raises ValueError for a device that is not there, or that lacks what the run asks of it.
    """
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    device = _device_of(runtime)
    if runtime.cuda_graphs and device.type != "cuda":
        raise ValueError(
            f"runtime.cuda_graphs needs a CUDA device, and this run is on {device.type}\nleave it at false"
        )
    return device


def teacher_devices(runtime: RuntimeSettings) -> list[torch.device]:
    """Those over which a teacher's layers are spread, the run's own the first of them; that alone for most runs.

    Raises ValueError where there are fewer than the run asks for.
    """
    return _neighbours(device_of(runtime), runtime.teacher_devices)


def check_device(runtime: RuntimeSettings) -> None:
    """Raise ValueError where `teacher_devices` would, but touch no GPU, which another run may have: it takes memory.

    How many a worker of a cluster has is Ray's to say.
    """
    gpus = ["cuda", *(f"cuda:{each}" for each in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    named = runtime.device in gpus
    device = device_of(replace(runtime, device="auto") if named else runtime)
    if runtime.engine == "local":
        _neighbours(torch.device(runtime.device) if named else device, runtime.teacher_devices)


def _neighbours(device: torch.device, num: int) -> list[torch.device]:
    """A device and those that follow it, `num` in all. Raises ValueError where there are fewer."""
    if num == 1:
        return [device]
    if device.type != "cuda":
        raise ValueError(
            f"runtime.teacher_devices={num} needs CUDA devices, and this run is on {device.type}\nleave it at 1"
        )
    first, total = device.index or 0, torch.cuda.device_count()
    if first + num > total:
        raise ValueError(
            f"runtime.teacher_devices={num} is more than the {total - first} from cuda:{first} on that there are here\n"
            "set it to as many at most, or take a machine with more GPUs"
        )
    return [torch.device("cuda", each) for each in range(first, first + num)]


def precision_of(runtime: RuntimeSettings) -> Precision:
    """The precision that a run's device is fast in, of this machine where it leaves the device to it."""
    return fast_precision(_kind(runtime))


def slow_precision(runtime: RuntimeSettings, settings: Iterable[object]) -> str | None:
    """What to say of settings that ask a CPU for products in bfloat16 that it does not have."""
    asked = set[str]().union(*map(precisions, settings)) & {"bfloat16", "bfloat16_weights"}
    if not asked or _kind(runtime) != "cpu" or precision_of(runtime) == "bfloat16":
        return None
    return f"this CPU has no products in bfloat16, and is slow in {min(asked)}\nset auto, or float32"


def free_unused() -> None:
    """Let other processes have the memory of a GPU that this one only keeps for later."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was not used


def _kind(runtime: RuntimeSettings) -> str:
    return _best(runtime).type if runtime.device == "auto" else runtime.device.partition(":")[0]


def _device_of(runtime: RuntimeSettings) -> torch.device:
    if runtime.device != "auto":
        try:
            torch.empty(0, device=runtime.device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
            message = f"runtime.device {runtime.device!r} cannot be used here: {first_line(error)}"
            raise ValueError(f"{message}\nleave it at auto, or name a device that this machine has") from None
        device = torch.device(runtime.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # what names no device, a kernel of Triton's for one, is to be on this one
        return device
    return _best(runtime)


def _best(runtime: RuntimeSettings) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    is_alone = runtime.engine == "local"  # processes that train together have no way to exchange what is on mps
    return torch.device("mps" if torch.backends.mps.is_available() and is_alone else "cpu")
