"""What several methods do with micro-batches: the student acts, the teacher reads what was written, the log sums up.

Shape legend: B rows, T target positions, M real tokens, E teacher width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from kd_core.losses.divergence_head import TeacherStates
from kd_core.models.policy import Memory, Model, encode_rows, head_of, target_states
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.responses import Responses, Rollout
from kd_core.rollout.sampling import sample
from kd_core.train.budget import Budget
from kd_core.train.in_flight import blank
from kd_core.train.ranks import ALONE, Mine, Ranks
from kd_core.train.state import autocast, fetched

R = TypeVar("R", bound=Responses)


def act(
    student: Model,
    sources: TokenRows,
    mine: Mine,
    settings: Budget,
    seed: int,
    *,
    times: int = 1,
    keep_memory: bool = False,
    num_tokens: int | None = None,
) -> tuple[Rollout, Memory | None]:
    """The student's own outputs for this rank's rows of a batch, `times` for each, drawn without a gradient.

    With `keep_memory` what it has read is returned too, with its gradient: an update that is on-policy and follows at
    once needs the encoder once for both.
    """
    with autocast(student.device, settings.optimizer.precision):
        with torch.set_grad_enabled(keep_memory):
            memory = encode_rows(student, sources, mine.rows_B, times)
        generator = torch.Generator(student.device).manual_seed(seed)
        rollout = sample(
            student, memory.detach(), settings.sampling, generator, num_tokens=num_tokens, within=mine.within(times)
        )
    return rollout, memory if keep_memory else None


def counted(part: R, mine: Mine) -> R:
    """What was written for this rank's rows; without a token that counts where these only keep step."""
    if mine.counts:
        return part
    return replace(part, **blank({name: x for name, x in vars(part).items() if isinstance(x, Tensor)}))


@torch.no_grad()
def teacher_states(teacher: Model, memory: Memory, responses: Responses, num_tokens: int | None) -> TeacherStates:
    """The teacher's states at every real token of given outputs.

    Shapes: Memory of B prompted sources, (B, T) responses -> `TeacherStates` of M tokens.
    """
    hidden_ME, _ = target_states(teacher, memory, responses.tokens_BT, responses.mask_BT)
    return TeacherStates(hidden_ME, head_of(teacher, num_tokens))


def lengths(responses: Sequence[Responses], ranks: Ranks = ALONE) -> dict[str, float]:
    """The tokens of an update's responses, their mean length, and the share of them that the limit cut off."""
    masks = {"tokens": [each.mask_BT for each in responses], "truncated": [each.truncated_B for each in responses]}
    sums = {name: [mask.sum() for mask in each] for name, each in masks.items()}
    shown = ranks.joined(fetched(sums | {"rows": [each.mask_BT.any(dim=1).sum() for each in responses]}))
    tokens, truncated, rows = (sum(shown[name]) for name in ("tokens", "truncated", "rows"))
    return {"tokens": tokens, "length": tokens / rows, "truncated": truncated / rows}
