"""Batches without padding: the real tokens of right-padded rows, packed, and padded again for attention alone.

Shape legend: B rows, S positions, N real tokens, X whatever follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 16  # attention is padded to a multiple of it: 15 positions cost three times what 16 do


@dataclass(frozen=True)
class Layout:
    """Where the packed tokens of a padded (B, S) batch stand."""

    index_N: Tensor  # positions of the real tokens in the flattened (B*S,)
    mask_BS: Tensor  # True at real tokens
    packed: bool  # False when nothing is padded: packing is then the identity
    _copies: dict[torch.device, "Layout"] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, mask_BS: Tensor) -> "Layout":
        """Layout of a right-padded batch. Shapes: (B, S) bool -> Layout."""
        index_N = mask_BS.flatten().nonzero().squeeze(1)
        return cls(index_N, mask_BS, packed=index_N.numel() < mask_BS.numel())

    def repeated(self, times: int) -> "Layout":
        """The layout of each row `times` over, one after another."""
        return Layout.of(self.mask_BS.repeat_interleave(times, dim=0))

    def on(self, device: torch.device) -> "Layout":
        """The same on a device; copied there once."""
        if device == self.index_N.device:
            return self
        if device not in self._copies:
            self._copies[device] = Layout(self.index_N.to(device), self.mask_BS.to(device), self.packed)
        return self._copies[device]

    def widened(self) -> "Layout":
        """The same tokens in the same order, in rows as long as attention likes them."""
        excess = -self.mask_BS.shape[1] % WIDTH
        return Layout.of(F.pad(self.mask_BS, (0, excess))) if excess else self

    def pack(self, padded_BSX: Tensor) -> Tensor:
        """(B, S, ...) -> (N, ...)."""
        flat = padded_BSX.flatten(0, 1)
        return flat.index_select(0, self.index_N) if self.packed else flat

    def pad(self, packed_NX: Tensor) -> Tensor:
        """(N, ...) -> (B, S, ...), zeros at padding."""
        if not self.packed:
            return unflatten(packed_NX, 0, self.mask_BS.shape)
        flat = packed_NX.new_zeros((self.mask_BS.numel(), *packed_NX.shape[1:]))
        return unflatten(flat.index_copy_(0, self.index_N, packed_NX), 0, self.mask_BS.shape)


def rows_of(sources: Tensor, num_beams: int) -> Tensor:
    """The rows of some sources where each source has `num_beams`, one after another. Shapes: (B',) -> (R',)."""
    return (sources[:, None] * num_beams + torch.arange(num_beams, device=sources.device)).flatten()


def unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """`Tensor.unflatten`, typed."""
    shaped: Tensor = x.unflatten(dim, tuple(sizes))
    return shaped


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores: 0 where it may look, the dtype's lowest number elsewhere. Of any shape."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def dropout(x: Tensor, module: Any) -> Tensor:
    """A dropout module's function, and nothing where it is off."""
    return F.dropout(x, module.p) if module.training and module.p > 0 else x
