"""Where a stage computes."""

import torch

from tasks.messages import first_line
from tasks.store.stage import RuntimeSettings


def device_of(runtime: RuntimeSettings) -> torch.device:
    """The device that the run names, or the best there is; sets the thread count where the run names one.

    Raises ValueError for a device that is not there.
    """
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if runtime.device != "auto":
        try:
            torch.empty(0, device=runtime.device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
            message = f"runtime.device {runtime.device!r} cannot be used here: {first_line(error)}"
            raise ValueError(f"{message}\nleave it at auto, or name a device that this machine has") from None
        return torch.device(runtime.device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
