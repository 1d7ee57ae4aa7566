"""DaD-DAgger as its algorithm reads, on the stock model: every window through the whole model, every epoch and round.

The yardstick. Logits at all positions, as `model(ids)` gives them; the teacher's answer to a window is kept once.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BORDER = 1e-4  # probability: by how much float32 may move a border, its logits' rounding summed over the vocabulary


def train(
    student: Any,
    optimizer: torch.optim.Optimizer,
    context_MH: Tensor,
    target_M: Tensor,
    teacher_MV: Tensor,
    alpha: float,
    batches: Sequence[Tensor],
) -> list[float]:
    """Eq. 5 on batches of windows; returns the losses. `teacher_MV`: the teacher's probabilities."""
    losses = []
    for index in batches:
        log_q = student(context_MH[index], use_cache=False).logits[:, -1].log_softmax(1)
        nll = F.nll_loss(log_q, target_M[index])
        kd = -(teacher_MV[index] * log_q).sum(1).mean()
        loss = alpha * nll + (1 - alpha) * kd
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


@torch.no_grad()
def answers(teacher: Any, context_MH: Tensor, rows: int = 32) -> Tensor:
    """(M, V) probabilities of the token after each window."""
    parts = [teacher(part, use_cache=False).logits[:, -1].softmax(1) for part in context_MH.split(rows)]
    return torch.cat(parts)


@torch.no_grad()
def roll_out(student: Any, context_BH: Tensor, uniform_BT: Tensor, written_BT: Tensor) -> tuple[list[Tensor], int]:
    """The windows after 1, 2, … tokens of the student's own, T - 1 times (B, H), and how many draws ours has otherwise.

    `written_BT`: (B, T - 1), the tokens that ours drew from the same numbers. In float32 a number next to a border of
    the cumulative distribution falls on either side of it; then ours is gone on with, so that the windows stay the
    same. Raises AssertionError where a number is farther from the token of ours than BORDER.
    """
    windows, otherwise = [], 0
    for step in range(uniform_BT.shape[1] - 1):
        cumulative = student(context_BH, use_cache=False).logits[:, -1].softmax(1).cumsum(1)
        threshold = uniform_BT[:, step, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=cumulative.shape[1] - 1)
        ours = written_BT[:, step, None]
        end = cumulative.gather(1, ours)
        start = torch.where(ours > 0, cumulative.gather(1, (ours - 1).clamp(min=0)), 0.0)
        apart = torch.maximum(start - threshold, threshold - end).max()
        assert apart <= BORDER, f"a token was drawn at {float(apart):.1e} from its place in the cumulative distribution"
        otherwise += int((token != ours).sum())
        context_BH = torch.cat([context_BH[:, 1:], ours], dim=1)
        windows.append(context_BH)
    return windows, otherwise
