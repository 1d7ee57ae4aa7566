"""A model as DaD-DAgger trains it: a frozen trunk, and the last block and final norm, on windows.

Shape legend: B windows, L tokens of a window, P predictions, at its last positions, D model width.

The trunk never changes, so what it makes of a window is computed once. GPT-Neo, the paper's family, needs neither keys
nor values for one prediction (`gpt_neo.py`); all others run on their stock modules (`decoder_only.py`).
"""

from typing import Literal

import torch
from torch import Tensor

from kd_core.train.state import autocast
from kd_core.windows import decoder_only, gpt_neo
from kd_core.windows.trunk import Model, Trunk, TrunkPrecision

Trainable = Literal["all", "last_block"]


def set_trainable(model: Model, what: Trainable) -> list[torch.nn.Parameter]:
    """Freeze all but `what`, and return what is trained.

    last_block: the last transformer block and the final norm, as DaD-DAgger does; the head, tied to the embedding or
    not, is then frozen too. Raises ValueError for another name.
    """
    if what not in ("all", "last_block"):
        raise ValueError(f"trainable must be all or last_block, got {what!r}")
    model.requires_grad_(what == "all")
    if what == "last_block":
        for module in decoder_only.from_last_block(model):
            module.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trunk(model: Model, ids_BL: Tensor, predictions: int = 1, precision: TrunkPrecision = "float32") -> Trunk:
    """The states below the last block, in the weights' dtype. Shapes: (B, L) ids, P -> Trunk.

    Where these blocks are frozen, no gradient is recorded. With `bfloat16` only their products are rounded. Raises
    ValueError for a context longer than the model has positions, and for a model that cannot be cut before its last
    block.
    """
    of_family = gpt_neo.trunk if _is_gpt_neo(model) else decoder_only.trunk
    with autocast(ids_BL.device, precision):
        below = of_family(model, ids_BL, predictions)
    return Trunk(below.behind_BXD.to(model.dtype), below.last_BPD.to(model.dtype))


def last_hidden(model: Model, below: Trunk) -> Tensor:
    """The final states of the predicting positions, for the head; differentiable in the last block and the final norm.

    Shapes: Trunk of B windows -> (B*P, D). By `head_of(model)` they become the logits of the next tokens.
    """
    of_family = gpt_neo.last_hidden if _is_gpt_neo(model) else decoder_only.last_hidden
    return of_family(model, below)


def next_hidden(model: Model, ids_BL: Tensor, predictions: int = 1, precision: TrunkPrecision = "float32") -> Tensor:
    """`last_hidden` of windows, from their tokens. Shapes: (B, L), P -> (B*P, D)."""
    return last_hidden(model, trunk(model, ids_BL, predictions, precision))


def _is_gpt_neo(model: Model) -> bool:
    return bool(model.config.model_type == "gpt_neo")
