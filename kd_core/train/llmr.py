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

from kd_core.losses.lm_head import token_log_probs, weighted_nll
from kd_core.losses.rewards import RewardSettings, reward_to_go, scale_and_clip, subtract_baseline
from kd_core.models.policy import Memory, Model, decode, encode, head_of, shift_right, start_tokens
from kd_core.rollout.outputs import Rollout
from kd_core.rollout.sampling import SamplingSettings, mixed_seed, sample
from kd_core.rollout.scoring import Judgement, judge
from kd_core.train.batches import Sources, updates
from kd_core.train.budget import Budget
from kd_core.train.state import StepMetrics, TrainState, autocast, pack, unpack
from kd_core.train.validation import validate_rewards


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

    @classmethod
    def of(cls, source_B: Tensor, rollout: Rollout, judged: Judgement, gain_BT: Tensor) -> "Experience":
        """What was written, what the teacher says of it, and what it gained."""
        written = rollout.tokens_BT, rollout.mask_BT, rollout.truncated_B, rollout.log_prob_BT
        return cls(source_B, *written, judged.q_value_BT, judged.value_BT, judged.reward_BT, judged.mask_BT, gain_BT)


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
    student, reuse, precision = state.model, settings.updates_per_rollout, settings.optimizer.precision
    student.eval()
    models = Models(student, teacher, train, settings, num_tokens)
    batches = updates(train.student.lengths.numpy(), settings.batch, seed, start=-(-state.step // reuse))
    experience = unpack(Experience, state.in_flight)  # of a run that was killed between two uses of it
    memories: list[Memory | None] = [None] * len(experience)
    while state.step < settings.steps:
        uses = state.step % reuse
        if uses == 0:
            experience, memories = [], []
            for micro, sources in enumerate(next(batches)):
                rows = sources.repeat_interleave(settings.rollouts_per_source)
                # act: the student writes, from states of its own; no gradient
                rollout, memory = models.act(rows, mixed_seed(seed, state.step // reuse, micro))
                # judge: one pass of the teacher, whose logits reward (Eq. 2 and 3)
                judged = models.judge(rows, rollout)
                gain_BT = reward_to_go(judged.reward_BT, judged.mask_BT)
                experience.append(Experience.of(rows.to(student.device), rollout, judged, gain_BT))
                memories.append(memory)
        # learn: up the mean over tokens of advantage_t * log q(y_t | s_t)
        num_kept = int(sum(part.kept_BT.sum() for part in experience))
        values = summary(experience) | {
            "staleness": float(uses),
            "loss": 0.0,
            "grad_norm": 0.0,
            "tokens": float(num_kept),
        }
        if num_kept > 0:  # else every rollout was cut off and dropped: there is nothing to learn from
            weighted = settings.importance == "always" or (settings.importance == "reused" and uses > 0)
            ratios = []
            for part, memory, advantage_BT in zip(
                experience, memories, advantages(experience, settings.reward), strict=True
            ):
                with autocast(student.device, precision):
                    loss, ratio = policy_gradient_loss(  # minus that, of this micro-batch
                        student,
                        memory or models.encode(part.source_B),
                        part,
                        advantage_BT / num_kept,
                        weighted=weighted,
                        entropy_coefficient=settings.entropy_bonus / num_kept,
                        num_tokens=num_tokens,
                    )
                loss.backward()
                values["loss"] += loss.item()
                ratios.append(ratio)
            values["grad_norm"] = state.apply(settings.optimizer, settings.steps, values["loss"])
            values["max_ratio"] = max(1.0, *ratios)
        state.step += 1
        state.in_flight = pack(experience) if state.step % reuse else {}
        if observe is not None:
            observe[:] = experience
        if settings.validates_at(state.step):
            limit, looked_at = settings.sampling.max_new_tokens, settings.validation_rows
            values |= validate_rewards(student, teacher, validation, settings.reward, limit, looked_at, num_tokens)
        yield StepMetrics(state.step, values)


def advantages(experience: list[Experience], settings: RewardSettings) -> list[Tensor]:
    """What multiplies log q(y_t | s_t): the gain less its baseline, scaled and clipped; (B, T) for each micro-batch.

    A batch baseline is taken over all micro-batches of the update together, so that splitting a batch changes nothing.
    """
    if settings.baseline != "batch_mean":
        parts = [subtract_baseline(e.gain_BT, e.value_BT, e.kept_BT, settings.baseline, _groups(e)) for e in experience]
    else:
        count = sum(e.kept_BT.sum() for e in experience)
        mean = sum(e.gain_BT.sum() for e in experience) / max(int(count), 1)
        parts = [(e.gain_BT - mean) * e.kept_BT for e in experience]
    return [scale_and_clip(part, settings) for part in parts]


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
    head = head_of(student, num_tokens)
    coefficient_M, target_M = layout.pack(coefficient_BT), layout.pack(part.tokens_BT)
    ratio = 1.0
    if weighted:
        log_ratio_M = token_log_probs(hidden_MD, head, target_M) - layout.pack(part.log_prob_BT)
        coefficient_M = coefficient_M * log_ratio_M.exp()
        ratio = float(log_ratio_M.exp().max()) if log_ratio_M.numel() else 1.0
    loss, _ = weighted_nll(hidden_MD, head, target_M, coefficient_M, entropy_coefficient)
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


@dataclass(frozen=True)
class Models:
    """The student that acts and the teacher that judges, on the sources of a run."""

    student: Model
    teacher: Model
    sources: Sources
    settings: LLMRSettings
    num_tokens: int | None

    def act(self, rows: Tensor, seed: int) -> tuple[Rollout, Memory | None]:
        """What the student writes for the sources of given rows, each drawn from the seed and its place alone.

        Where the update that follows reads the same sources once, its pass over them comes with it, with gradient.
        """
        device, settings = self.student.device, self.settings
        shared = settings.updates_per_rollout == 1 and settings.batch.micro_batches == 1
        with torch.set_grad_enabled(shared), autocast(device, settings.optimizer.precision):
            memory = self.encode(rows)
        generator = torch.Generator(device).manual_seed(seed)
        with autocast(device, settings.optimizer.precision):
            rollout = sample(self.student, memory.detach(), settings.sampling, generator, num_tokens=self.num_tokens)
        return rollout, memory if shared else None

    def encode(self, rows: Tensor) -> Memory:
        """The student's pass over the sources of given rows."""
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
