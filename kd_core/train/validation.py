"""What the student writes for validation inputs, in the teacher's eyes.

Shape legend: B rows, S source positions, T target positions, M real tokens.

Sampled outputs are drawn from the student's whole distribution with the same random numbers every time, whatever
top_k, top_p and temperature a method samples with, so that curves of different methods and settings compare.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kd_core.losses.divergence_head import Divergence, divergence_loss
from kd_core.losses.rewards import RewardSettings
from kd_core.models.policy import Memory, Model, encode_rows, head_of, padded_rows, target_states
from kd_core.rollout.responses import Rollout
from kd_core.rollout.sampling import SamplingSettings, greedy, sample
from kd_core.rollout.scoring import judge
from kd_core.train.batches import Sources
from kd_core.train.budget import Budget
from kd_core.train.passes import teacher_states

BATCH_ROWS = 64


def validate(
    student: Model, teacher: Model, sources: Sources, settings: Budget, num_tokens: int | None = None
) -> dict[str, float]:
    """What the log of a method that samples or imitates has of the validation set: rewards (Eq. 1) and divergences."""
    limit, rows = settings.sampling.max_new_tokens, settings.validation_rows
    rewards = validate_rewards(student, teacher, sources, RewardSettings(), limit, rows, num_tokens)
    return rewards | validate_divergences(student, teacher, sources, limit, rows, num_tokens)


@torch.no_grad()
def validate_rewards(
    student: Model,
    teacher: Model,
    sources: Sources,
    reward: RewardSettings,
    max_new_tokens: int,
    max_rows: int,
    num_tokens: int | None = None,
) -> dict[str, float]:
    """Mean reward per token of what the student writes, greedily and by plain sampling, and the length of the former.

    In nats of teacher logit. Source: LLMR Eq. 1, on the first `max_rows` rows. Truncated outputs are bootstrapped, not
    dropped.
    """
    kept = replace(reward, truncated="bootstrap")
    totals = {"validation": [0.0, 0], "validation_sampled": [0.0, 0]}
    for index, memory, sampled in _samples(student, sources, max_new_tokens, max_rows, num_tokens):
        source, mask = padded_rows(teacher, sources.teacher, index)
        written = greedy(student, memory, max_new_tokens, num_tokens=num_tokens)
        for name, each in (("validation", written), ("validation_sampled", sampled)):
            judged = judge(teacher, source, mask, each, kept, num_tokens=num_tokens)
            totals[name][0] += float(judged.reward_BT.sum())
            totals[name][1] += int(judged.mask_BT.sum())
    rewards = {f"{name}_reward": total / tokens for name, (total, tokens) in totals.items()}
    return rewards | {"validation_length": totals["validation"][1] / min(max_rows, len(sources.student))}


@torch.no_grad()
def validate_divergences(
    student: Model,
    teacher: Model,
    sources: Sources,
    max_new_tokens: int,
    max_rows: int,
    num_tokens: int | None = None,
) -> dict[str, float]:
    """Forward and reverse KL per token, in nats, on what the student itself writes: exposure bias and all."""
    totals, count = {"forward_kl": 0.0, "reverse_kl": 0.0}, 0
    head = head_of(student, num_tokens)
    for index, memory, sampled in _samples(student, sources, max_new_tokens, max_rows, num_tokens):
        hidden_MD, _ = target_states(student, memory, sampled.tokens_BT, sampled.mask_BT)
        seen = teacher_states(teacher, encode_rows(teacher, sources.teacher, index), sampled, num_tokens)
        for kind in ("forward_kl", "reverse_kl"):
            ones_M = hidden_MD.new_ones(len(hidden_MD))
            totals[kind] += float(divergence_loss(hidden_MD, head, seen, ones_M, Divergence(kind))[0])
        count += len(hidden_MD)
    return {f"validation_{kind}": total / count for kind, total in totals.items()}


def _samples(
    student: Model, sources: Sources, max_new_tokens: int, max_rows: int, num_tokens: int | None
) -> Iterator[tuple[Tensor, Memory, Rollout]]:
    """Batches of row numbers with the student's memory of them and its plain samples."""
    plain = SamplingSettings(max_new_tokens=max_new_tokens)
    for number, index in enumerate(torch.arange(min(max_rows, len(sources.student))).split(BATCH_ROWS)):
        memory = encode_rows(student, sources.student, index)
        generator = torch.Generator(student.device).manual_seed(number)
        yield index, memory, sample(student, memory, plain, generator, num_tokens=num_tokens)
