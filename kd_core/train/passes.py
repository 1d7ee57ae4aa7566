"""What several methods do with micro-batches: the student acts, the teacher reads what was written, the log sums up.

Shape legend: B rows, T target positions, M real tokens, E teacher width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from kd_core.losses.divergence_head import TeacherStates
from kd_core.losses.soft_targets import BucketLabels, TopKLabels
from kd_core.models.backends.remote import RemoteModel
from kd_core.models.policy import Memory, Model, encode_rows, head_of, target_states
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.responses import Responses, Rollout
from kd_core.rollout.sampling import sample
from kd_core.rollout.teacher_labels import asked_labels
from kd_core.train.budget import Budget
from kd_core.train.in_flight import blank
from kd_core.train.ranks import ALONE, Mine, Ranks
from kd_core.train.state import autocast, fetched

R = TypeVar("R", bound=Responses)
LEAST_REST = 1e-6  # of the mass of all others: less cannot be told from 0 by log-probabilities in float32


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


def teacher_top_k(
    teacher: RemoteModel, memory: Memory, responses: Responses, top_k: int, num_tokens: int
) -> TopKLabels:
    """The likeliest tokens of a teacher behind a server at every real token of given outputs, the others a bucket.

    Shapes: a `RemoteMemory` of B prompts, (B, T) responses -> labels of M tokens, in float64 where the device has it.
    The bucket keeps at least LEAST_REST: the reverse KL divides by it. A divergence from it is of K + 1 outcomes, and
    no more than the one of all V (data-processing inequality). Of what the student does among the others only their
    sum is seen: next to nothing is lost to forward KL, much to reverse KL, if q is not where p is. Numbers are in
    docs/methods/divergences.md. [ours]
    """
    told = asked_labels(teacher, memory, responses.tokens_BT, responses.mask_BT, top_k, "bucket")
    log_prob_MK = told.log_prob_MK[:]
    if log_prob_MK.device.type != "mps":  # which has no float64
        log_prob_MK = log_prob_MK.double()
    others_M1 = (log_prob_MK > float("-inf")).sum(dim=1, keepdim=True) < num_tokens
    excess_M1 = (log_prob_MK.exp().sum(dim=1, keepdim=True) / (1 - LEAST_REST)).clamp(min=1)
    return BucketLabels(told.ids_MK, log_prob_MK - excess_M1.log() * others_M1)


def lengths(responses: Sequence[Responses], ranks: Ranks = ALONE) -> dict[str, float]:
    """The tokens of an update's responses, their mean length, and the share of them that the limit cut off."""
    masks = {"tokens": [each.mask_BT for each in responses], "truncated": [each.truncated_B for each in responses]}
    sums = {name: [mask.sum() for mask in each] for name, each in masks.items()}
    shown = ranks.joined(fetched(sums | {"rows": [each.mask_BT.any(dim=1).sum() for each in responses]}))
    tokens, truncated, rows = (sum(shown[name]) for name in ("tokens", "truncated", "rows"))
    return {"tokens": tokens, "length": tokens / rows, "truncated": truncated / rows}
