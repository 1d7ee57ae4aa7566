"""LLMR's reinforcement learning: the student writes, the teacher's logits reward, REINFORCE learns.

Shape legend: B rollouts, S source positions, T target positions, M real tokens that count, D model width.

Dropout is off throughout: the policy that samples and the policy that learns are then the same function, and an
on-policy update needs the encoder once for both. [ours]
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kd_core.batching import Sources, updates
from kd_core.losses.lm_head import token_log_probs, weighted_nll
from kd_core.losses.rewards import RewardSettings, reward_to_go, scale_and_clip, subtract_baseline
from kd_core.masking import shift_right
from kd_core.models.policy import Memory, Model, decode, encode, head_weight, start_tokens
from kd_core.rollout.sampling import Rollout, SamplingSettings, sample
from kd_core.rollout.scoring import Judgement, judge
from kd_core.train.budget import Budget
from kd_core.train.validation import validate_rewards
from kd_core.training import StepMetrics, TrainState, autocast, mixed_seed, pack, unpack


@dataclass(frozen=True, kw_only=True)
class LLMRSettings(Budget):
    """LLMR's RL phase.

    Defaults: the paper's formulas, and the predecessor's published scripts where the paper is silent.
    """

    kind: Literal["llmr"] = "llmr"
    rollouts_per_source: int = 1  # leave_one_out needs at least 2
    updates_per_rollout: int = 1  # above 1, rollouts are reused and weighted by q_theta / q_behaviour
    importance: Literal["reused", "always", "never"] = (
        "reused"  # always: also where top_k or top_p reshaped the first use
    )
    entropy_bonus: float = 0.0  # nats^-1; the true entropy, not the cross-entropy to uniform of the authors' code
    sampling: SamplingSettings = field(default_factory=lambda: SamplingSettings(top_k=2))
    reward: RewardSettings = field(default_factory=RewardSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rollouts_per_source", "updates_per_rollout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.importance not in ("reused", "always", "never"):
            raise ValueError(f"importance must be reused, always or never, got {self.importance!r}")
        if self.entropy_bonus < 0:
            raise ValueError(f"entropy_bonus must be 0 (off) or more, got {self.entropy_bonus}")
        if self.reward.baseline == "leave_one_out" and self.rollouts_per_source < 2:
            raise ValueError("baseline leave_one_out needs rollouts_per_source of at least 2, got 1")


@dataclass(frozen=True)
class Experience:
    """Judged rollouts of one micro-batch: what an update learns from, and what a checkpoint must not lose."""

    source_B: Tensor  # row numbers of the data set, one per rollout
    tokens_BT: Tensor
    mask_BT: Tensor
    truncated_B: Tensor
    log_prob_BT: Tensor  # under the behaviour policy
    q_value_BT: Tensor
    value_BT: Tensor
    reward_BT: Tensor
    kept_BT: Tensor  # tokens that count (truncated rollouts may be dropped)
    gain_BT: Tensor  # G_t, raw, in nats of teacher logit


def train_llmr(
    state: TrainState,
    teacher: Model,
    train: Sources,
    validation: Sources,
    settings: LLMRSettings,
    seed: int,
    *,
    num_tokens: int | None = None,
    observe: list[Experience] | None = None,
) -> Iterator[StepMetrics]:
    """Maximise E_{y ~ q_theta}[sum of rewards] by REINFORCE.

    Yields one row a step; goes on from `state`, rollouts in flight included.

    `observe`, if given, holds the judged rollouts of the step just yielded. Source: LLMR Eq. 1 to 4 and the
    gradient under Eq. 4.
    """
    student, reuse = state.model, settings.updates_per_rollout
    student.eval()
    collector = Collector(student, teacher, train, settings, num_tokens)
    lengths = train.student.lengths.numpy()
    batches = updates(lengths, settings.batch, seed, start=-(-state.step // reuse))
    experience = unpack(Experience, state.in_flight)
    memories: list[Memory | None] = [None] * len(experience)
    while state.step < settings.steps:
        if state.step % reuse == 0:
            share_memory = reuse == 1 and settings.batch.micro_batches == 1
            collected = [
                collector.collect(rows, mixed_seed(seed, state.step // reuse, micro), share_memory)
                for micro, rows in enumerate(next(batches))
            ]
            experience, memories = [e for e, _ in collected], [m for _, m in collected]
        values = _update(state, experience, memories, collector, settings)
        state.in_flight = pack(experience) if state.step % reuse else {}
        if observe is not None:
            observe[:] = experience
        if settings.validates_at(state.step):
            limit, rows = settings.sampling.max_new_tokens, settings.validation_rows
            values |= validate_rewards(student, teacher, validation, settings.reward, limit, rows, num_tokens)
        yield StepMetrics(state.step, values)


@dataclass(frozen=True)
class Collector:
    """Act and judge: rollouts of the student, scored by one teacher pass."""

    student: Model
    teacher: Model
    sources: Sources
    settings: LLMRSettings
    num_tokens: int | None

    def collect(self, rows: Tensor, seed: int, share_memory: bool) -> tuple[Experience, Memory | None]:
        """Sample and score one micro-batch.

        With `share_memory`, the encoder's states are returned with their gradient.
        """
        device, settings = self.student.device, self.settings
        rows = rows.repeat_interleave(settings.rollouts_per_source)
        with torch.set_grad_enabled(share_memory), autocast(device, settings.optimizer.precision):
            memory = self.encode(rows)
        generator = torch.Generator(device).manual_seed(seed)
        with autocast(device, settings.optimizer.precision):
            rollout = sample(self.student, memory.detach(), settings.sampling, generator, num_tokens=self.num_tokens)
        judged = self.judge(rows, rollout)
        gain_BT = reward_to_go(judged.reward_BT, judged.mask_BT)
        experience = Experience(
            rows.to(device),
            rollout.tokens_BT,
            rollout.mask_BT,
            rollout.truncated_B,
            rollout.log_prob_BT,
            judged.q_value_BT,
            judged.value_BT,
            judged.reward_BT,
            judged.mask_BT,
            gain_BT,
        )
        return experience, memory if share_memory else None

    def encode(self, rows: Tensor) -> Memory:
        """The student's encoder states of given rows."""
        pad_id = self.student.config.pad_token_id
        return encode(self.student, *self.sources.student.batch(rows.cpu(), pad_id, self.student.device))

    def judge(self, rows: Tensor, rollout: Rollout) -> Judgement:
        """The teacher's judgement of rollouts of given rows."""
        source, mask = self.sources.teacher.batch(rows.cpu(), self.teacher.config.pad_token_id, self.teacher.device)
        return judge(
            self.teacher,
            source,
            mask,
            rollout.tokens_BT,
            rollout.mask_BT,
            rollout.truncated_B,
            self.settings.reward,
            num_tokens=self.num_tokens,
        )


def policy_coefficients(experience: list[Experience], settings: RewardSettings) -> list[Tensor]:
    """What multiplies grad log q(y_t) in each micro-batch: the gain less its baseline, scaled and clipped; (B, T) each.

    A batch baseline is taken over all micro-batches of the update together, so that splitting a batch changes nothing.
    """
    if settings.baseline != "batch_mean":
        parts = [subtract_baseline(e.gain_BT, e.value_BT, e.kept_BT, settings.baseline, _groups(e)) for e in experience]
    else:
        count = sum(e.kept_BT.sum() for e in experience)
        mean = sum(e.gain_BT.sum() for e in experience) / max(int(count), 1)
        parts = [(e.gain_BT - mean) * e.kept_BT for e in experience]
    return [scale_and_clip(part, settings) for part in parts]


def _update(
    state: TrainState,
    experience: list[Experience],
    memories: list[Memory | None],
    collector: Collector,
    settings: LLMRSettings,
) -> dict[str, float]:
    """Learn: one optimizer step on judged rollouts, averaged over all tokens that count."""
    num_kept = int(sum(e.kept_BT.sum() for e in experience))
    values = summary(experience)
    values["staleness"] = float(state.step % settings.updates_per_rollout)
    if num_kept == 0:  # every rollout was cut off and dropped: nothing to learn from, and said so
        state.step += 1
        return values | {"loss": 0.0, "grad_norm": 0.0, "tokens": 0.0}
    first_use = state.step % settings.updates_per_rollout == 0
    weighted = settings.importance == "always" or (settings.importance == "reused" and not first_use)
    loss, max_ratio = 0.0, 1.0
    coefficients = policy_coefficients(experience, settings.reward)
    for part, memory, coefficient_BT in zip(experience, memories, coefficients, strict=True):
        with autocast(state.model.device, settings.optimizer.precision):
            surrogate, ratio = policy_gradient_loss(
                state.model,
                memory or collector.encode(part.source_B),
                part,
                coefficient_BT / num_kept,
                weighted=weighted,
                entropy_coefficient=settings.entropy_bonus / num_kept,
                num_tokens=collector.num_tokens,
            )
        surrogate.backward()
        loss, max_ratio = loss + surrogate.item(), max(max_ratio, ratio)
    norm = state.apply(settings.optimizer, settings.steps, loss)
    state.step += 1
    return values | {"loss": loss, "grad_norm": norm, "tokens": float(num_kept), "max_ratio": max_ratio}


def policy_gradient_loss(
    student: Model,
    memory: Memory,
    part: Experience,
    coefficient_BT: Tensor,
    *,
    weighted: bool = False,
    entropy_coefficient: float = 0.0,
    num_tokens: int | None = None,
) -> tuple[Tensor, float]:
    """-sum_t c_t log q_theta(y_t|s_t) over the tokens that count, and the largest importance ratio.

    Shapes: Memory of B sources, (B, T) coefficients -> scalar, float. Its gradient is REINFORCE's: c_t is the
    gain less its baseline. Source: LLMR, the gradient under Eq. 4; METHODS 1.6 for the detached ratio q_theta /
    q_behaviour.
    """
    inputs_BT = shift_right(part.tokens_BT, start_tokens(student, memory))
    hidden_MD, layout = decode(student, memory, inputs_BT, part.kept_BT)
    weight_VD = head_weight(student, num_tokens)
    coefficient_M, target_M = layout.pack(coefficient_BT), layout.pack(part.tokens_BT)
    ratio = 1.0
    if weighted:
        log_ratio_M = token_log_probs(hidden_MD, weight_VD, target_M) - layout.pack(part.log_prob_BT)
        coefficient_M = coefficient_M * log_ratio_M.exp()
        ratio = float(log_ratio_M.exp().max()) if log_ratio_M.numel() else 1.0
    loss, _ = weighted_nll(hidden_MD, weight_VD, target_M, coefficient_M, entropy_coefficient)
    return loss, ratio


def summary(experience: list[Experience]) -> dict[str, float]:
    """What a batch of rollouts shows: mean reward and gain of what counts, length and share of truncated of all."""
    rows = sum(len(e.tokens_BT) for e in experience)
    kept = max(int(sum(e.kept_BT.sum() for e in experience)), 1)
    kept_rows = max(int(sum(e.kept_BT.any(dim=1).sum() for e in experience)), 1)
    return {
        "reward": float(sum(e.reward_BT.sum() for e in experience)) / kept,
        "gain": float(sum(e.gain_BT[:, 0].sum() for e in experience)) / kept_rows,
        "behaviour_nll": -float(sum((e.log_prob_BT * e.kept_BT).sum() for e in experience)) / kept,
        "length": float(sum(e.mask_BT.sum() for e in experience)) / rows,
        "truncated": float(sum(e.truncated_B.sum() for e in experience)) / rows,
    }


def _groups(part: Experience) -> Tensor:
    """(B,) the source of each rollout, numbered from 0."""
    _, group_B = torch.unique(part.source_B, return_inverse=True)
    return group_B  # type: ignore[no-any-return]
