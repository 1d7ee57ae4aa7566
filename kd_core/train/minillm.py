"""MiniLLM: the policy gradient of the reverse KL between whole outputs (Gu et al. 2024).

Shape legend: B rollouts, T target positions, M real target tokens, D student width.

    L        = KL(q_theta || p) over outputs = -E_{y ~ q} [sum_t r_t],   r_t = log p(y_t | s_t) - log q(y_t | s_t)
    grad L   = -E_{y ~ q} [sum_t (R_t - 1) grad log q(y_t)],             R_t = r_t + ... + r_T             Eq. 2

and what the paper makes of it, each a setting:

    single_step    grad L = E [sum_t grad KL(q || p at step t)  -  sum_t R_{t+1} grad log q(y_t)]: the step itself is
                   summed over the vocabulary, only what follows it is estimated
    teacher_mix    y ~ alpha p + (1 - alpha) q, token by token; both sums weighted by w_t = q(y_t) / mixture(y_t), of
                   which the paper keeps the current token's ratio alone (biased, by its choice, for less variance)
    length_norm    R_{t+1} divided by the number of its summands, so that long outputs are not penalised for length
    ratio_clip     PPO's: min(w R, clip(w, 1 +- epsilon) R)

Ours: the -1 of Eq. 2 is left out (E[grad log q] is 0); R_{t+1} is divided by its T - t summands (printed is T - t - 1,
which is 0 at the last token but one); where a rollout is used again, r_t is the current student's. Not taken over: the
pre-training corpus' loss (there is no such corpus here), and what is in the authors' code but not in the paper's
equations: whitened returns, a discount of 0.95, rewards halved and clipped, R_t in place of R_{t+1} beside the
single-step term, which is not weighted by w_t there. Dropout is off throughout.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kd_core.losses.divergence_head import Divergence, divergence_loss
from kd_core.losses.lm_head import token_log_probs, weighted_nll
from kd_core.losses.rewards import reward_to_go
from kd_core.models.policy import Model, encode_rows, head_of, target_states
from kd_core.rollout.mixed_sampling import sample_mixed
from kd_core.rollout.responses import Rollout
from kd_core.rollout.sampling import mixed_seed
from kd_core.train.batches import Sources, updates
from kd_core.train.best import ran_out, restore
from kd_core.train.budget import Budget
from kd_core.train.in_flight import dealt, pack, unpack
from kd_core.train.passes import act, counted, lengths, teacher_states
from kd_core.train.ranks import Mine
from kd_core.train.state import StepMetrics, TrainState, autocast
from kd_core.train.validation import Validation


@dataclass(frozen=True, kw_only=True)
class MiniLLMSettings(Budget):
    """Defaults: the paper's, all three strategies on; one update a rollout, as its Algorithm 1."""

    kind: Literal["minillm"] = "minillm"
    single_step: bool = True
    teacher_mix: float = 0.2  # alpha; 0 = the student alone writes
    length_norm: bool = True
    ratio_clip: float = 0.2  # epsilon; 0 = off
    updates_per_rollout: int = 1  # the authors' code takes 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.teacher_mix < 1:
            raise ValueError(f"teacher_mix must be in [0, 1), got {self.teacher_mix}")
        if not 0 <= self.ratio_clip < 1:
            raise ValueError(f"ratio_clip must be in [0, 1), 0 = off, got {self.ratio_clip}")
        if self.updates_per_rollout < 1:
            raise ValueError(f"updates_per_rollout must be at least 1, got {self.updates_per_rollout}")


@dataclass(frozen=True, kw_only=True)
class Experience(Rollout):
    """Rollouts of one micro-batch: what an update learns from, and what a checkpoint must not lose."""

    source_B: Tensor  # row numbers of the data set


def future_return(reward_BT: Tensor, mask_BT: Tensor, *, from_next: bool, length_norm: bool) -> Tensor:
    """R_{t+1} (from_next) or R_t: the sum of later rewards, or their mean with `length_norm`.

    Shapes: (B, T), (B, T) -> (B, T), nats; 0 where nothing follows and where masked.
    Source: MiniLLM, single-step decomposition and length normalisation.
    """
    total_BT = reward_to_go(reward_BT, mask_BT)
    count_BT = reward_to_go(mask_BT.to(reward_BT.dtype), mask_BT)
    if from_next:
        total_BT, count_BT = (total_BT - reward_BT) * mask_BT, (count_BT - 1).clamp(min=0)
        total_BT = torch.where(count_BT > 0, total_BT, 0.0)
    return total_BT / count_BT.clamp(min=1) if length_norm else total_BT


def clipped_weight(ratio: Tensor, future: Tensor, clip: float) -> Tensor:
    """What multiplies R grad log q in the gradient of min(w R, clip(w, 1 - clip, 1 + clip) R): w, or 0 where clipped.

    Shapes: any two of one shape -> the same. With clip 0 nothing is clipped. Source: MiniLLM, Algorithm 1 (PPO's clip).
    """
    if clip == 0:
        return ratio
    clipped = ((ratio > 1 + clip) & (future > 0)) | ((ratio < 1 - clip) & (future < 0))
    return ratio.masked_fill(clipped, 0.0)


def train_minillm(
    state: TrainState,
    teacher: Model,
    train: Sources,
    validation: Sources,
    settings: MiniLLMSettings,
    seed: int,
    *,
    num_tokens: int | None = None,
) -> Iterator[StepMetrics]:
    """Minimise KL(q_theta || p) between outputs by its policy gradient, averaged over all tokens of an update.

    Yields one row a step, before them a row 0 of the student as it starts, and goes on from `state`, rollouts in flight
    included.
    """
    student, ranks, reuse = state.model, state.ranks, settings.updates_per_rollout
    student.eval()
    pair = Pair(student, teacher, train, settings, num_tokens)
    batches = updates(train.student.lengths.numpy(), settings.batch, seed, start=-(-state.step // reuse))
    tokens_R = train.tokens(settings.sampling.max_new_tokens)  # at most: how many are written is not known before
    state.in_flight = dealt(state.in_flight, ranks, tokens_R)
    experience = unpack(Experience, state.in_flight)
    held_out = Validation(teacher, validation, settings, num_tokens=num_tokens, ranks=ranks)
    if state.step == 0:
        yield StepMetrics(0, held_out.look(state))
    while state.step < settings.steps and not ran_out(state, settings.patience):
        if state.step % reuse == 0:
            # act: the student writes, or the two of them mixed
            experience = {
                micro: pair.write(mine, mixed_seed(seed, state.step // reuse, micro))
                for micro, rows_B in enumerate(next(batches))
                if len(mine := ranks.mine(rows_B, micro, tokens_R[rows_B]))
            }
        values = {"staleness": float(state.step % reuse)} | lengths(list(experience.values()), ranks)
        count = int(values["tokens"])
        seen: dict[str, list[Tensor]] = {name: [] for name in ("loss", "reward", "reverse_kl", "clipped", "max_ratio")}
        for part in experience.values():
            # judge and learn: -sum_t w_t R_{t+1} log q(y_t | s_t), and sum_t w_t KL(q || p) of the steps themselves
            with autocast(student.device, settings.optimizer.precision):
                objective, of_part = pair.loss(part, count)
            objective.backward()
            for name, value in of_part.items():
                seen[name].append(value)
        shown = state.apply(settings.optimizer, settings.steps, seen)
        state.step += 1
        state.in_flight = pack(experience) if state.step % reuse else {}
        values["loss"] = sum(shown["loss"])
        values |= {name: sum(x / count for x in shown[name]) for name in ("reward", "reverse_kl", "clipped")}
        values |= {"grad_norm": sum(shown["grad_norm"]), "max_ratio": max(shown["max_ratio"])}
        if settings.validates_at(state.step):
            values |= held_out.look(state)
        yield StepMetrics(state.step, values)
    restore(state)


@dataclass(frozen=True)
class Pair:
    """Student and teacher at work on the training inputs."""

    student: Model
    teacher: Model
    train: Sources
    settings: MiniLLMSettings
    num_tokens: int | None

    def write(self, mine: Mine, seed: int) -> Experience:
        """Roll out this rank's rows of a micro-batch: the student, or the two of them mixed."""
        student, teacher, settings = self.student, self.teacher, self.settings
        if settings.teacher_mix == 0:
            rollout, _ = act(student, self.train.student, mine, settings, seed, num_tokens=self.num_tokens)
        else:
            with torch.no_grad(), autocast(student.device, settings.optimizer.precision):
                rollout = sample_mixed(
                    student,
                    encode_rows(student, self.train.student, mine.rows_B),
                    teacher,
                    encode_rows(teacher, self.train.teacher, mine.rows_B),
                    settings.teacher_mix,
                    settings.sampling,
                    torch.Generator(student.device).manual_seed(seed),
                    num_tokens=self.num_tokens,
                    within=mine.within(),
                )
        return counted(Experience(**vars(rollout), source_B=mine.rows_B), mine)

    def loss(self, part: Experience, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """A surrogate whose gradient is the micro-batch's share of an update of `count` tokens, and what it showed."""
        settings = self.settings
        memory = encode_rows(self.student, self.train.student, part.source_B)
        hidden_MD, layout = target_states(self.student, memory, part.tokens_BT, part.mask_BT)
        head, target_M = head_of(self.student, self.num_tokens), layout.pack(part.tokens_BT)
        with torch.no_grad():
            prompts = encode_rows(self.teacher, self.train.teacher, part.source_B)
        seen = teacher_states(self.teacher, prompts, part, self.num_tokens)
        log_q_M = token_log_probs(hidden_MD, head, target_M)
        reward_M = token_log_probs(seen.hidden_ME, seen.head, target_M) - log_q_M
        ratio_M = (log_q_M - layout.pack(part.log_prob_BT)).exp()
        future_BT = future_return(
            layout.pad(reward_M), part.mask_BT, from_next=settings.single_step, length_norm=settings.length_norm
        )
        future_M = layout.pack(future_BT)
        weight_M = clipped_weight(ratio_M, future_M, settings.ratio_clip)
        loss = weighted_nll(hidden_MD, head, target_M, weight_M * future_M / count)
        of_step = hidden_MD if settings.single_step else hidden_MD.detach()
        step_head = head if settings.single_step else head.detach()
        step_loss, step_M = divergence_loss(of_step, step_head, seen, ratio_M / count, Divergence("reverse_kl"))
        if settings.single_step:
            loss = loss + step_loss
        values = {"reward": reward_M.sum(), "reverse_kl": step_M.sum(), "clipped": (weight_M == 0).sum()}
        largest = ratio_M.max() if ratio_M.numel() else ratio_M.new_zeros(())
        return loss, values | {"loss": loss.detach(), "max_ratio": largest}
