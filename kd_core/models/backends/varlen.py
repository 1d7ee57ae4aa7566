"""Attention over packed rows without padding, on CUDA devices: PyTorch's `varlen_attn`, a flash attention kernel.

Shape legend: B rows, S prompt and T response positions, M packed queries, X packed keys, H query heads, G key heads,
K head width.

The queries of a row are its last tokens and see all its keys up to their own place. Half precision alone; where the
kernel does not serve (a softcap, a window that is shorter than the rows, float32, another device), attention pads.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor

WIDEST_HEAD = 256
OLDEST = (8, 0)  # the compute capability that flash attention needs


@dataclass(frozen=True)
class Ends:
    """Where rows end among packed tokens, and no fewer tokens than the longest row has."""

    end_B1: Tensor  # int32, from 0
    longest: int

    @classmethod
    def of(cls, mask_BT: Tensor) -> "Ends":
        """Shapes: (B, T) bool, True at tokens that are packed row by row."""
        return cls(F.pad(mask_BT.sum(dim=1).cumsum(0), (1, 0)).int(), mask_BT.shape[1])

    def on(self, device: torch.device) -> "Ends":
        """The same on a device."""
        return Ends(self.end_B1.to(device), self.longest)


@dataclass(frozen=True)
class Packed:
    """A layer's heads, row after row."""

    query_MHK: Tensor
    key_XGK: Tensor
    value_XGK: Tensor
    queries: Ends
    keys: Ends


def key_places(before_BS: Tensor, own_BT: Tensor) -> Tensor:
    """Where each row's keys stand, its padded ones before its packed own.

    Shapes: (B, S) and (B, T) masks -> (X,) places among B*S padded ones, followed by all that are packed.
    """
    place_BS = torch.arange(before_BS.numel(), device=own_BT.device).view_as(before_BS)
    place_BT = before_BS.numel() - 1 + own_BT.flatten().cumsum(0).view_as(own_BT)
    return torch.cat([place_BS, place_BT], dim=1)[torch.cat([before_BS, own_BT], dim=1)]


def serves(query: Tensor) -> bool:
    """Whether there is a kernel for such heads. Shapes: (..., K)."""
    width = query.shape[-1]
    if not query.is_cuda or width > WIDEST_HEAD or width % 8 or not _is_there():
        return False
    known = _dtype(query) in (torch.bfloat16, torch.float16)
    return known and torch.cuda.get_device_capability(query.device) >= OLDEST


@cache
def _is_there() -> bool:
    """Whether this PyTorch has it, with keys that heads share."""
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in signature(varlen_attn).parameters


def _dtype(x: Tensor) -> torch.dtype:
    """What it is computed in: a rotation leaves float32 under autocast, which does not know the kernel."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype


def attend(packed: Packed, scaling: float | None) -> Tensor:
    """softmax(q k' scaling) v, each query over its row's keys up to its own place. Shapes: `Packed` -> (M, H, K)."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x.to(_dtype(x)).contiguous() for x in (packed.query_MHK, packed.key_XGK, packed.value_XGK))
    out = varlen_attn(
        q,
        k,
        v,
        packed.queries.end_B1,
        packed.keys.end_B1,
        packed.queries.longest,
        packed.keys.longest,
        scale=scaling,
        window_size=(-1, 0),  # causal, where a row's last query stands at its last key
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)  # nothing else was asked for
    return out
