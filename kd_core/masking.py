"""One mask for rollout, teacher and student.

Shape legend: B rows, T target positions.

A mask is never built from `!= pad`: T5's pad is its decoder start and GPT-Neo's pad is its end of sequence. It ends
at the first end-of-sequence token, inclusive, so that ending is an action that is learned and scored like any other.
"""

import torch
from torch import Tensor


def mask_through_eos(tokens_BT: Tensor, eos_id: int) -> Tensor:
    """True up to and including the first end-of-sequence token of each row.

    Shapes: (B, T) -> (B, T) bool. A row without end of sequence is True throughout (it was truncated).
    """
    is_eos_BT = tokens_BT == eos_id
    ended_before_BT = is_eos_BT.cumsum(dim=1) - is_eos_BT.long()
    return ended_before_BT == 0


def truncated_rows(tokens_BT: Tensor, mask_BT: Tensor, eos_id: int) -> Tensor:
    """True for rows whose unmasked part holds no end of sequence: they hit the length limit and have no terminal state.

    Shapes: (B, T), (B, T) -> (B,) bool.
    """
    return ~((tokens_BT == eos_id) & mask_BT).any(dim=1)


def shift_right(tokens_BT: Tensor, start: Tensor | int) -> Tensor:
    """Decoder inputs for targets: position t reads token t-1, position 0 reads the start token.

    Shapes: (B, T), (B,) or one for all -> (B, T). The last target is dropped, never wrapped around to the front.
    """
    start_B1 = start[:, None] if isinstance(start, Tensor) else tokens_BT.new_full((tokens_BT.shape[0], 1), start)
    return torch.cat([start_B1, tokens_BT[:, :-1]], dim=1)
