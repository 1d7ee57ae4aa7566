"""Prompts and responses of decoder-only models: what is left of a prompt, and where its tokens stand.

Shape legend: B rows, S prompt positions, G key heads, K head width.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kd_core.models.packing import Layout

FAR = 2**30  # where padding stands: after every query, so that none looks at it


@dataclass(frozen=True)
class Memory:
    """What prompts leave for their responses: keys and values of all tokens but the last, and that last token.

    The last token predicts the response's first, as a decoder's start token does: it is the response's first input.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]  # a pair of (B, G, S, K) for each layer; none where S is 0
    layout: Layout  # of the prompts without their last token
    last_B: Tensor

    @property
    def length_B(self) -> Tensor:
        """(B,) tokens before the last: the position at which it stands itself."""
        return self.layout.mask_BS.sum(dim=1)

    @property
    def position_BS(self) -> Tensor:
        """(B, S) where the keys stand."""
        position_S = torch.arange(self.layout.mask_BS.shape[1], device=self.last_B.device)
        return position_S.expand_as(self.layout.mask_BS).masked_fill(~self.layout.mask_BS, FAR)

    def detach(self) -> "Memory":
        """The same memory with no gradient, for sampling."""
        pairs = tuple((key.detach(), value.detach()) for key, value in self.keys_values)
        return Memory(pairs, self.layout, self.last_B)

    def repeated(self, times: int) -> "Memory":
        """Each prompt `times` over, one after another."""
        again = partial(torch.repeat_interleave, repeats=times, dim=0)
        pairs = tuple((again(key), again(value)) for key, value in self.keys_values)
        return Memory(pairs, self.layout.repeated(times), self.last_B.repeat_interleave(times))


def last_tokens(ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """The last token of right-padded prompts. Shapes: (B, S), (B, S) bool -> (B,).

    Raises ValueError for a prompt without a token.
    """
    length_B = mask_BS.sum(dim=1)
    if (length_B == 0).any():
        raise ValueError("a causal model needs at least one token of prompt in every row, got an empty prompt")
    return ids_BS.gather(1, length_B[:, None] - 1).squeeze(1)


def check_fits(
    length: int, most: int | None, what: str = "a prompt and its response of {} tokens together are"
) -> None:
    """Raise ValueError for more tokens than the model has positions; None: it has no limit."""
    if most is not None and length > most:
        raise ValueError(
            f"{what.format(length)} longer than the model's {most} positions\nlower lengths.source, or lengths.target"
        )


def num_positions(model: Any) -> int | None:
    """How many tokens a row may have; None: no limit.

    Rotations that change with the length of the batch (dynamic, longrope) are good up to where they begin to: a row's
    keys would depend on its neighbours.
    """
    config = model.get_decoder().config
    rotations = getattr(config, "rope_parameters", None) or {}
    each = [rotations, *(x for x in rotations.values() if isinstance(x, dict))]  # one, or one for each kind of layer
    changing = [x for x in each if x.get("rope_type") in ("dynamic", "longrope")]
    limits = [x.get("original_max_position_embeddings") for x in changing]
    known = [limit for limit in (getattr(config, "max_position_embeddings", None), *limits) if limit is not None]
    return min(known, default=None)
