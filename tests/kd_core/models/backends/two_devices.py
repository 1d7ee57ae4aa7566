"""A second device where there is none: tensors of the CPU that are said to be on `OTHER`, and must not meet the rest.

What torch functions are called with is looked at as a device would: where one tensor is on `OTHER`, all have to be, and
what comes out is there too. Numbers stay those of the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

HOME, OTHER = torch.device("cpu"), torch.device("cpu", 1)
DEVICE, SET_DATA = Tensor.device.__get__, Tensor.data.__set__  # type: ignore[attr-defined]


class TwoDevices(TorchFunctionMode):
    """Within it there are two. `moves`: copies from one to the other so far."""

    def __init__(self) -> None:
        super().__init__()
        self.moves = 0
        self._there: Any = WeakIdKeyDictionary()  # tensors on OTHER

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == DEVICE:
            return OTHER if args[0] in self._there else func(*args)
        asked = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)]
        found = {x in self._there for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if func == SET_DATA:
            found = {args[1] in self._there}
            self._put(args[0], there=args[1] in self._there)
        if len(found) > 1:
            raise RuntimeError(f"{func.__name__} of tensors on two devices")
        there = OTHER in asked if asked else True in found
        if func == Tensor.to and found != {there}:
            self.moves += 1
            args = (args[0].clone(), *args[1:])
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._put(x, there=there)
        return out

    def _put(self, x: Tensor, *, there: bool) -> None:
        if there:
            self._there[x] = True
        else:
            self._there.pop(x, None)
