"""How often the host has to wait for what it gave a device to do: what the tests of synchronisation watch."""

from contextlib import ExitStack
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# a number is read (`item`, `bool`, `int`, …), or a size depends on what the tensor holds
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
FETCHING = ("tolist", "cpu", "numpy")  # of what is on a CPU already, no operation shows that anybody asked


class Waits(TorchDispatchMode):
    """Within it, `count` is the number of operations so far for which a CUDA device would have been waited for.

    No tensor tells here whether it would be on a device: what is fetched twice, or was never there, counts too.
    """

    count = 0

    def __init__(self) -> None:
        super().__init__()
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        for name in FETCHING:
            self._patches.enter_context(patch.object(Tensor, name, self._counted(getattr(Tensor, name))))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def _counted(self, method: Any) -> Any:
        def fetch(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(tensor, *args, **kwargs)

        return fetch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket.__name__
        by_mask = packet == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        self.count += packet in WAITING or by_mask
        return func(*args, **(kwargs or {}))
