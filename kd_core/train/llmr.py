"""LLMR's reinforcement learning: the student writes, the teacher's logits reward, REINFORCE learns.

Shape legend: B rollouts, S source positions, T target positions, M real tokens that count, D model width.

Dropout is off throughout: the policy that samples and the policy that learns are then the same function, and an
on-policy update needs the encoder once for both. [ours]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor

from kd_core.losses.divergence_head import Divergence, TeacherStates, divergence_loss
from kd_core.losses.head import full_precision
from kd_core.losses.lm_head import token_log_probs, weighted_nll
from kd_core.losses.rewards import RewardSettings, mean_to_go, reward_to_go, scale_and_clip, subtract_baseline
from kd_core.models.policy import Memory, Model, encode_rows, head_of, target_states
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.responses import Rollout
from kd_core.rollout.sampling import SamplingSettings, mixed_seed
from kd_core.rollout.scoring import Judgement, judge
from kd_core.train.batches import Sources, updates
from kd_core.train.best import ran_out, restore
from kd_core.train.budget import Budget
from kd_core.train.in_flight import dealt, pack, unpack
from kd_core.train.passes import act, counted, lengths, teacher_states
from kd_core.train.ranks import ALONE, Ranks
from kd_core.train.state import StepMetrics, TrainState, autocast, fetched
from kd_core.train.validation import Validation


@dataclass(frozen=True, kw_only=True)
class LLMRSettings(Budget):
    """LLMR's RL phase.

    Defaults: the paper's formulas, and the predecessor's published scripts where the paper is silent.
    """

    kind: Literal["llmr"] = "llmr"
    rollouts_per_source: int = 1  # leave_one_out needs at least 2
    updates_per_rollout: int = 1  # above 1, rollouts are reused and weighted by q_theta / q_behaviour
    importance: Literal["reused", "always", "never"] = "reused"  # always: the first use too, reshaped by top_k or top_p
    entropy_bonus: float = 0.0  # nats^-1; the true entropy, not the cross-entropy to uniform of the authors' code
    # what holds against collapse on a real LLM: weights of exact terms of each step, beside the scaled reward [ours]
    reverse_kl: float = field(default=0.0, metadata={"later": True})  # of KL(q || p), as MiniLLM's single-step term
    start_kl: float = field(default=0.0, metadata={"later": True})  # of KL(q || q of the start)
    sampling: SamplingSettings = field(default_factory=lambda: SamplingSettings(top_k=2))
    reward: RewardSettings = field(default_factory=RewardSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rollouts_per_source", "updates_per_rollout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.importance not in ("reused", "always", "never"):
            raise ValueError(f"importance must be reused, always or never, got {self.importance!r}")
        for name in ("entropy_bonus", "reverse_kl", "start_kl"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 (off) or more, got {getattr(self, name)}")
        if self.reward.baseline == "leave_one_out" and self.rollouts_per_source < 2:
            raise ValueError("baseline leave_one_out needs rollouts_per_source of at least 2, got 1")


@dataclass(frozen=True, kw_only=True)
class Experience(Rollout):
    """Judged rollouts of one micro-batch: what an update learns from, and what a checkpoint must not lose."""

    source_B: Tensor  # row numbers of the data set, one per rollout
    q_value_BT: Tensor
    value_BT: Tensor
    reward_BT: Tensor
    kept_BT: Tensor  # tokens that count (truncated rollouts may be dropped)
    gain_BT: Tensor  # G_t, raw, in nats of teacher logit
    memory: Memory | None = None  # what the student has read, while its gradient holds; no checkpoint has it

    @classmethod
    def of(cls, source_B: Tensor, rollout: Rollout, judged: Judgement, gain_BT: Tensor, memory: Memory | None) -> Self:
        """What was sampled, judged and summed up for rows of the data set."""
        return cls(
            **vars(rollout),
            source_B=source_B,
            q_value_BT=judged.q_value_BT,
            value_BT=judged.value_BT,
            reward_BT=judged.reward_BT,
            kept_BT=judged.mask_BT,
            gain_BT=gain_BT,
            memory=memory,
        )


@dataclass(frozen=True)
class Pull:
    """Another model's distributions at the tokens that count, and how strongly the student is held to them."""

    towards: TeacherStates
    weight: float  # over the number of tokens of the update


def train_llmr(
    state: TrainState,
    teacher: Model,
    train: Sources,
    validation: Sources,
    settings: LLMRSettings,
    seed: int,
    *,
    start: Model | None = None,
    num_tokens: int | None = None,
    observe: dict[int, Experience] | None = None,
) -> Iterator[StepMetrics]:
    """Maximise E_{y ~ q_theta}[sum of rewards] by REINFORCE.

    Yields one row a step, before them a row 0 of the student as it starts, and goes on from `state`, rollouts in flight
    included. `start` is that student, never trained: `start_kl` needs it. `observe`, if given, holds this
    rank's judged rollouts of the step just yielded, by micro-batch. Source: LLMR Eq. 1 to 4 and the
    gradient under Eq. 4.
    """
    student, ranks = state.model, state.ranks
    reuse, times = settings.updates_per_rollout, settings.rollouts_per_source
    student.eval()
    held_out = Validation(teacher, validation, settings, settings.reward, num_tokens, ranks)
    anchors = [(teacher, train.teacher, settings.reverse_kl), (start, train.student, settings.start_kl)]
    if state.step == 0:
        yield StepMetrics(0, held_out.look(state))
    read_once = reuse == 1 and settings.batch.micro_batches == 1  # the encoder serves the rollout and its only update
    batches = updates(train.student.lengths.numpy(), settings.batch, seed, start=-(-state.step // reuse))
    # how long a response gets is not known before it is written: up to the limit. By prompts alone, ranks with short
    # ones would have the most to write
    tokens_R = train.tokens(times * settings.sampling.max_new_tokens)
    state.in_flight = dealt(state.in_flight, ranks, tokens_R)
    experience = unpack(Experience, state.in_flight)  # of a run that was killed between two uses of it
    while state.step < settings.steps and not ran_out(state, settings.patience):
        uses = state.step % reuse  # updates that these rollouts have served
        if uses == 0:
            experience = {}
            for micro, rows_B in enumerate(next(batches)):
                mine = ranks.mine(rows_B, micro, tokens_R[rows_B])
                if not len(mine):
                    continue
                # act: the student writes, from states of its own; no gradient
                draw = mixed_seed(seed, state.step // reuse, micro)
                rollout, memory = act(
                    student,
                    train.student,
                    mine,
                    settings,
                    draw,
                    times=times,
                    keep_memory=read_once,
                    num_tokens=num_tokens,
                )
                # judge: one pass of the teacher, whose logits reward (Eq. 2 and 3)
                with torch.no_grad():
                    prompts = encode_rows(teacher, train.teacher, mine.rows_B, times)
                judged = judge(teacher, prompts, rollout, settings.reward, num_tokens=num_tokens)
                gain_BT = reward_to_go(judged.reward_BT, judged.mask_BT)
                source_B = mine.rows_B.repeat_interleave(times)
                part = Experience.of(source_B, rollout, judged, gain_BT, memory)
                experience[micro] = counted(part, mine)
        # learn: up the mean over tokens of advantage_t * log q(y_t | s_t)
        parts = list(experience.values())
        values = summary(parts, ranks) | {"staleness": float(uses)}
        num_kept = int(values.pop("tokens"))
        values |= {"loss": 0.0, "grad_norm": 0.0, "tokens": float(num_kept)}
        if num_kept > 0:  # else every rollout was cut off and dropped: there is nothing to learn from
            weighted = settings.importance == "always" or (settings.importance == "reused" and uses > 0)
            losses, ratios = [], []
            for part, advantage_BT in zip(parts, advantages(parts, settings.reward, ranks), strict=True):
                with autocast(student.device, settings.optimizer.precision):
                    loss, ratio = policy_gradient_loss(  # minus that, of this micro-batch
                        student,
                        part.memory or encode_rows(student, train.student, part.source_B[::times], times),
                        part,
                        advantage_BT / num_kept,
                        weighted=weighted,
                        entropy_coefficient=settings.entropy_bonus / num_kept,
                        pulls=[
                            Pull(kept_states(model, rows, part, times, num_tokens), weight / num_kept)
                            for model, rows, weight in anchors
                            if model is not None and weight > 0
                        ],
                        num_tokens=num_tokens,
                    )
                loss.backward()
                losses.append(loss.detach())
                ratios.append(ratio)
            shown = state.apply(settings.optimizer, settings.steps, {"loss": losses, "max_ratio": ratios})
            values |= {"loss": sum(shown["loss"]), "grad_norm": sum(shown["grad_norm"])}
            values["max_ratio"] = max(1.0, *shown["max_ratio"])
        state.step += 1
        state.in_flight = pack(experience) if state.step % reuse else {}
        if observe is not None:
            observe.clear()
            observe.update(experience)
        if settings.validates_at(state.step):
            values |= held_out.look(state)
        yield StepMetrics(state.step, values)
    restore(state)


def kept_states(
    model: Model, sources: TokenRows, part: Experience, times: int, num_tokens: int | None
) -> TeacherStates:
    """What another model makes of the tokens that count. Shapes: B rollouts -> `TeacherStates` of M tokens."""
    with torch.no_grad():
        memory = encode_rows(model, sources, part.source_B[::times], times)
    return teacher_states(model, memory, replace(part, mask_BT=part.kept_BT), num_tokens)


def advantages(experience: list[Experience], settings: RewardSettings, ranks: Ranks = ALONE) -> list[Tensor]:
    """What multiplies log q(y_t | s_t): the gain less its baseline, scaled and clipped; (B, T) of each micro-batch.

    A batch baseline is taken over all micro-batches of the update together, those of all ranks, so that splitting a
    batch changes nothing.
    """
    if settings.length_norm:
        experience = [
            replace(e, gain_BT=mean_to_go(e.q_value_BT - e.value_BT, e.kept_BT), value_BT=torch.zeros_like(e.value_BT))
            for e in experience
        ]
    if settings.baseline != "batch_mean":
        parts = [subtract_baseline(e.gain_BT, e.value_BT, e.kept_BT, settings.baseline, _groups(e)) for e in experience]
    else:
        sums = {"count": [e.kept_BT.sum() for e in experience], "gain": [e.gain_BT.sum() for e in experience]}
        shown = ranks.joined(fetched(sums))
        gains, count = torch.tensor(shown["gain"], dtype=torch.float64), max(sum(shown["count"]), 1)
        parts = [(e.gain_BT - sum(gains.to(e.gain_BT.dtype)) / count) * e.kept_BT for e in experience]
    return [scale_and_clip(part, settings) for part in parts]


def policy_gradient_loss(
    student: Model,
    memory: Memory,
    part: Experience,
    advantage_BT: Tensor,
    *,
    weighted: bool = False,
    entropy_coefficient: float = 0.0,
    pulls: Sequence[Pull] = (),
    num_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """-sum_t w_t A_t log q_theta(y_t|s_t) over the tokens that count, and the largest importance ratio w_t.

    Shapes: Memory of B sources, (B, T) advantages, over the number of tokens -> two scalars. Its gradient is
    REINFORCE's. w_t is 1, or where `weighted` q_theta / q_behaviour, a constant. Each pull adds its weight times
    sum_t KL(q_theta || its distribution), exact at every step, with a gradient through that step alone. Source: LLMR,
    the gradient under Eq. 4; METHODS 1.6 for w_t.
    """
    hidden_MD, layout = target_states(student, memory, part.tokens_BT, part.kept_BT)
    head = head_of(student, num_tokens)
    advantage_M, target_M = layout.pack(advantage_BT), layout.pack(part.tokens_BT)
    ratio = full_precision(hidden_MD.new_ones(()))
    if weighted:
        log_ratio_M = token_log_probs(hidden_MD, head, target_M) - layout.pack(part.log_prob_BT)
        advantage_M = advantage_M * log_ratio_M.exp()
        ratio = log_ratio_M.exp().max() if log_ratio_M.numel() else ratio
    loss = weighted_nll(hidden_MD, head, target_M, advantage_M, entropy_coefficient)
    for pull in pulls:
        weight_M = full_precision(hidden_MD.new_ones(len(hidden_MD))) * pull.weight
        loss = loss + divergence_loss(hidden_MD, head, pull.towards, weight_M, Divergence("reverse_kl"))[0]
    return loss, ratio


def summary(experience: list[Experience], ranks: Ranks = ALONE) -> dict[str, float]:
    """What a batch of rollouts shows: tokens, mean reward, gain of what counts; length, share of truncated of all."""
    tensors = {
        "tokens": [e.kept_BT.sum() for e in experience],
        "rows": [e.kept_BT.any(dim=1).sum() for e in experience],
        "reward": [e.reward_BT.sum() for e in experience],
        "gain": [e.gain_BT[:, 0].sum() for e in experience],
        "log_prob": [(e.log_prob_BT * e.kept_BT).sum() for e in experience],
    }
    total = {name: sum(numbers) for name, numbers in ranks.joined(fetched(tensors)).items()}
    kept, kept_rows = max(total["tokens"], 1), max(total["rows"], 1)
    return {
        "reward": total["reward"] / kept,
        "gain": total["gain"] / kept_rows,
        "behaviour_nll": -total["log_prob"] / kept,
        **lengths(experience, ranks),
        "tokens": total["tokens"],
    }


def _groups(part: Experience) -> Tensor:
    """(B,) the source of each rollout, numbered from 0."""
    _, group_B = torch.unique(part.source_B, return_inverse=True)
    found: Tensor = group_B.to(part.gain_BT.device)
    return found
