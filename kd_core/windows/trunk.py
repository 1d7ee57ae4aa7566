"""What a model's frozen part makes of windows.

Shape legend: B windows, L tokens of a window, P predictions, at its last positions, X positions that the predictions
look back on, D model width. Exact windows have P = 1 and L = H context tokens; packed ones L = H + P - 1.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Model = Any  # a transformers …ForCausalLM; transformers ships no types
TrunkPrecision = Literal["float32", "bfloat16"]  # bfloat16: autocast, states between products stay as the weights are


@dataclass(frozen=True)
class Trunk:
    """All that the last block needs for its predictions."""

    behind_BXD: Tensor  # GPT-Neo: its input at all L positions, normed; others: as it is at the L - P before `last_BPD`
    last_BPD: Tensor  # its input at the predicting positions as it is

    def of(self, model: Model, index_B: Tensor) -> "Trunk":
        """Some of the windows. The model is not asked: it has answered."""
        return Trunk(self.behind_BXD[index_B], self.last_BPD[index_B])

    @staticmethod
    def cat(parts: "list[Trunk]") -> "Trunk":
        """Windows of one length and as many predictions, one after another."""
        return Trunk(torch.cat([each.behind_BXD for each in parts]), torch.cat([each.last_BPD for each in parts]))
