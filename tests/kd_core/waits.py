"""How often the host has to wait for what it gave a device to do: what the tests of synchronisation watch."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# a number is read (`item`, `bool`, `int`, …), or a size depends on what the tensor holds
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}


class Waits(TorchDispatchMode):
    """Within it, `count` is the number of operations so far for which a CUDA device would have been waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket.__name__
        by_mask = packet == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        self.count += packet in WAITING or by_mask
        return func(*args, **(kwargs or {}))
