"""LLMR's reward: what the teacher's logits say of the student's own words.

Shape legend: B rollouts, T positions. All quantities are in nats of teacher logit.

    q_val(y_t; s_t) = f(y_t | s_t)                                   Eq. 2: the teacher's logit is the q-value
    V(s)            = max_y q_val(y; s)                              or its softmax expectation, or its logsumexp
    R_t             = q_val(y_t; s_t) - V(s_{t+1})                   Eq. 3, V = 0 after the end of sequence
    G_t             = sum of R_i over i >= t                         the gain under Eq. 4
                    = V(s_t) + sum_{i >= t} [q_val(y_i) - V(s_i)]    the identity that makes
                    V(s_t) an exact, free baseline
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kd_core.losses.lm_head import ValueKind

BaselineKind = Literal["none", "value", "batch_mean", "leave_one_out"]
TruncatedKind = Literal["drop", "bootstrap"]
CentreKind = bool | Literal["log_probs"]


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """How teacher logits become gains. Defaults: the paper's Eq. 2 to 4; scale and clip of its predecessor's code."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    value: ValueKind = "max"
    # subtract the mean over V at each position, as the authors' code does; log_probs: the logsumexp, all that a teacher
    # behind a server gives [ours]
    centre: CentreKind = True
    truncated: TruncatedKind = "drop"  # what becomes of rollouts cut off at the limit; dropping favours short ones
    baseline: BaselineKind = "none"
    reward_scale: float = 100.0  # the gain is divided by it, nats
    reward_clip: float = 1.0  # then clipped to +- this; 0 = off
    length_norm: bool = field(default=False, metadata={"later": True})  # mean of q_val - V to come for G_t

    def __post_init__(self) -> None:
        for name, allowed in (
            ("value", ("max", "softmax", "logsumexp")),
            ("centre", (True, False, "log_probs")),
            ("truncated", ("drop", "bootstrap")),
            ("baseline", ("none", "value", "batch_mean", "leave_one_out")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}")
        if self.reward_scale <= 0:
            raise ValueError(f"reward_scale must be above 0, got {self.reward_scale}")
        if self.reward_clip < 0:
            raise ValueError(f"reward_clip must be 0 (off) or more, got {self.reward_clip}")


def induced_reward(q_value_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, last_value_B: Tensor) -> Tensor:
    """R_t = q_val(y_t; s_t) - V(s_{t+1}).

    Shapes: (B, T) q-values, (B, T) values V(s_t), (B, T) mask through the end, (B,) value of the state after the
    last real token (0 after an end of sequence; V(s_{T+1}) where a truncated rollout is bootstrapped) -> (B, T),
    0 where masked. Raises ValueError if the shapes differ. Source: LLMR Eq. 3. The last position's next value is
    never the first position's.
    """
    if not q_value_BT.shape == value_BT.shape == mask_BT.shape:
        shapes = (tuple(q_value_BT.shape), tuple(value_BT.shape), tuple(mask_BT.shape))
        raise ValueError(f"q_value, value and mask must have one shape, got {shapes}")
    next_value_BT = torch.cat([value_BT[:, 1:], torch.zeros_like(value_BT[:, :1])], dim=1)
    is_last_BT = mask_BT & ~torch.cat([mask_BT[:, 1:], torch.zeros_like(mask_BT[:, :1])], dim=1)
    next_value_BT = torch.where(is_last_BT, last_value_B[:, None].to(value_BT.dtype), next_value_BT)
    return (q_value_BT - next_value_BT) * mask_BT


def reward_to_go(reward_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Rewards still to come: G_t = sum of R_i over i >= t.

    Shapes: (B, T), (B, T) -> (B, T), in the reward's unit. Masked tokens return 0. Raises ValueError if the
    shapes differ. Source: LLMR, the gain under Eq. 4.
    """
    if reward_BT.shape != mask_BT.shape:
        raise ValueError(f"reward and mask must have one shape, got {tuple(reward_BT.shape)}, {tuple(mask_BT.shape)}")
    return (reward_BT * mask_BT).flip(1).cumsum(1).flip(1) * mask_BT


def mean_to_go(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean of what is still to come, a token. Shapes: (B, T), (B, T) -> (B, T), 0 where masked.

    Of q_val(y_i) - V(s_i) it stands for a gain less its baseline that does not count length: G_t - V(s_t) is their sum.
    G_t itself has V(s_t) once, however long the output is, and its mean would be highest for one that ends at once; and
    that of a truncated rollout lacks V(s_{T+1}), which is a price on being cut off. [ours]
    """
    return reward_to_go(x_BT, mask_BT) / reward_to_go(mask_BT.to(x_BT.dtype), mask_BT).clamp(min=1)


def subtract_baseline(
    gain_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, kind: BaselineKind, group_B: Tensor | None = None
) -> Tensor:
    """The gain less a baseline that does not depend on the action taken, so that the expected gradient stays the same.

    none: G_t (the paper). value: G_t - V(s_t), exact and free by the identity above. batch_mean: less the mean
    over real tokens of the batch (its own token included: biased by 1/n, as usual). leave_one_out: less the mean
    gain from the start of the other rollouts of the same source that count; needs `group_B`, the source of each row.
    A rollout that was dropped (no token of its mask counts) is in nobody's baseline, and one whose siblings were all
    dropped has none: its gain is G_t, as with `none`, which alone leaves the expected gradient as it is. [ours]

    Shapes: (B, T), (B, T), (B, T), (B,) -> (B, T), 0 where masked. Raises ValueError for leave_one_out if a
    source has one rollout only.
    """
    if kind == "none":
        return gain_BT
    if kind == "value":
        return (gain_BT - value_BT) * mask_BT
    if kind == "batch_mean":
        return (gain_BT - gain_BT.sum() / mask_BT.sum().clamp(min=1)) * mask_BT
    if group_B is None:
        raise ValueError("baseline leave_one_out needs the source of each rollout (group_B), got none")
    if (torch.bincount(group_B)[group_B] < 2).any():
        raise ValueError("baseline leave_one_out needs at least 2 rollouts of every source, got a source with 1")
    counts_B = mask_BT.any(dim=1).to(gain_BT.dtype)
    start_gain_B = gain_BT[:, 0] * counts_B
    size_G = torch.zeros_like(start_gain_B).index_add(0, group_B, counts_B)
    sum_G = torch.zeros_like(start_gain_B).index_add(0, group_B, start_gain_B)
    others_B = size_G[group_B] - counts_B
    baseline_B = (sum_G[group_B] - start_gain_B) / others_B.clamp(min=1)  # without others the sum is 0
    return (gain_BT - torch.where(others_B > 0, baseline_B, 0.0)[:, None]) * mask_BT


def scale_and_clip(gain_BT: Tensor, settings: RewardSettings) -> Tensor:
    """G_t / reward_scale, clipped to +-reward_clip. Shapes: (B, T) -> (B, T).

    Source: the predecessor's `denom` and clip [code].
    """
    scaled_BT = gain_BT / settings.reward_scale
    return scaled_BT.clamp(-settings.reward_clip, settings.reward_clip) if settings.reward_clip else scaled_BT
