"""Distillation by a step-wise divergence, on what the teacher wrote, on what the student writes, or on both.

Shape legend: B rows, S source positions, T target positions, M real target tokens, D student width, E teacher width.

    loss = 1/n sum over sequences y, sum over t of D(p(. | x, y_<t), q_theta(. | x, y_<t))

n is the number of all tokens of an update. What differs between the methods is which D, and who wrote y: `step_terms`.
The divergence at a step is exact, a sum over the vocabulary; the gradient goes through it alone, never through the
sampling of y. The student reads the raw source, the teacher the prompted one.

Where labels of the teacher's outputs are kept, they stand for the teacher there; a method whose student never writes
needs no teacher then. A teacher behind a server is asked for its likeliest tokens of what the student writes, and D is
that of these and one more outcome, all others together: see `teacher_top_k` for what that cannot see.

Dropout is off throughout: the student that samples and the one that learns are then the same function. [ours]
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kd_core.lengths import require_length
from kd_core.losses.divergence_head import Divergence, TeacherStates, as_teacher, divergence_loss
from kd_core.losses.rewards import RewardSettings
from kd_core.losses.soft_targets import TeacherLabels
from kd_core.models.backends.remote import RemoteModel
from kd_core.models.policy import Memory, Model, encode_rows, head_of, padded_rows, target_states
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.responses import Responses, truncated_rows
from kd_core.rollout.sampling import mixed_seed
from kd_core.rollout.teacher_labels import OutputLabels
from kd_core.train.batches import Sources, updates
from kd_core.train.best import ran_out, restore
from kd_core.train.budget import Budget
from kd_core.train.passes import act, counted, lengths, teacher_states, teacher_top_k
from kd_core.train.ranks import ALONE, Mine, Ranks
from kd_core.train.state import StepMetrics, TrainState, autocast
from kd_core.train.validation import Validation

Writer = Literal["teacher", "student"]
GKD_DRAW = 2**32  # the draw of an update's writer; its micro-batches are numbered far below


@dataclass(frozen=True, kw_only=True)
class ForwardKLSettings(Budget):
    """KL(p || q) on the teacher's outputs: word-level distillation. `sampling` limits their length, no more."""

    kind: Literal["forward_kl"] = "forward_kl"


@dataclass(frozen=True, kw_only=True)
class ReverseKLSettings(Budget):
    """KL(q || p) on the student's samples."""

    kind: Literal["reverse_kl"] = "reverse_kl"


@dataclass(frozen=True, kw_only=True)
class JSSettings(Budget):
    """beta KL(p || m) on the teacher's outputs + (1 - beta) KL(q || m) on the student's samples (f-distill, LLMR)."""

    kind: Literal["js"] = "js"
    beta: float = 0.5  # the teacher's share of m = beta p + (1 - beta) q; LLMR's authors use 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must be in (0, 1), got {self.beta}")


@dataclass(frozen=True, kw_only=True)
class GKDSettings(Budget):
    """Generalised JSD, each update wholly on the student's samples or wholly on the teacher's outputs (GKD).

    Defaults: TRL's. beta as in paper and TRL: the teacher's share of the mixture, 0 = forward KL, 1 = reverse KL.
    """

    kind: Literal["gkd"] = "gkd"
    beta: float = 0.5
    student_share: float = 0.5  # lambda: of the updates that are on the student's samples; 1 = on-policy throughout

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "student_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


DivergenceSettings = ForwardKLSettings | ReverseKLSettings | JSSettings | GKDSettings


@dataclass(frozen=True)
class Term:
    """A divergence, and who writes the sequences that it is taken on."""

    writer: Writer
    divergence: Divergence


def step_terms(settings: DivergenceSettings, seed: int, step: int) -> list[Term]:
    """What update `step` minimises: the methods' definitions.

    Source: LLMR's baselines as in f-distill (Wen et al. 2023); GKD, Algorithm 1 (Agarwal et al. 2024), which draws once
    an update whether the student writes, with probability lambda.
    """
    match settings:
        case ForwardKLSettings():
            return [Term("teacher", Divergence("forward_kl"))]
        case ReverseKLSettings():
            return [Term("student", Divergence("reverse_kl"))]
        case JSSettings():
            of_teacher = Term("teacher", Divergence("js_teacher_term", settings.beta))
            return [of_teacher, Term("student", Divergence("js_student_term", settings.beta))]
        case GKDSettings():
            generator = torch.Generator().manual_seed(mixed_seed(seed, step, GKD_DRAW))
            on_policy = float(torch.rand((), generator=generator)) < settings.student_share
            return [Term("student" if on_policy else "teacher", Divergence.generalised_jsd(settings.beta))]


def reads_outputs(settings: DivergenceSettings) -> bool:
    """Whether any update needs what the teacher wrote."""
    return not isinstance(settings, ReverseKLSettings) and getattr(settings, "student_share", 0.0) < 1


def student_writes(settings: DivergenceSettings) -> bool:
    """Whether any update is on what the student writes, for which the teacher must be asked."""
    return not isinstance(settings, ForwardKLSettings) and getattr(settings, "student_share", 1.0) > 0


@dataclass(frozen=True)
class Transfer:
    """Training inputs, and what the teacher wrote for them (None where no update needs it)."""

    sources: Sources
    outputs: TokenRows | None
    labels: OutputLabels | None = None  # of every token of the outputs, in place of the teacher there
    top_k: int = 0  # how many of its likeliest tokens a teacher behind a server is asked for


@dataclass(frozen=True)
class Written:
    """One micro-batch: the outputs of each term, and the student's encoder states if they carry their gradient."""

    rows_B: Tensor
    outputs: list[Responses]
    memory: Memory | None


def train_divergence(
    state: TrainState,
    teacher: Model | None,
    train: Transfer,
    validation: Sources,
    settings: DivergenceSettings,
    seed: int,
    *,
    num_tokens: int | None = None,
) -> Iterator[StepMetrics]:
    """Minimise the divergences of `step_terms`, averaged over all tokens of an update.

    Yields one row a step, before them a row 0 of the student as it starts, and goes on from `state.step`: an update is
    a function of weights, seed and step alone. `teacher` may be None where labels stand for it throughout.
    """
    assert teacher is not None or (train.labels is not None and not student_writes(settings))
    student, ranks = state.model, state.ranks
    student.eval()
    pair = Pair(student, teacher, train, settings, num_tokens)
    reward = RewardSettings(centre="log_probs" if isinstance(teacher, RemoteModel) else True)
    held_out = Validation(teacher, validation, settings, reward, num_tokens=num_tokens, ranks=ranks)
    if state.step == 0:
        yield StepMetrics(0, held_out.look(state))
    for micro_batches in updates(train.sources.student.lengths.numpy(), settings.batch, seed, start=state.step):
        if state.step >= settings.steps or ran_out(state, settings.patience):
            break
        terms = step_terms(settings, seed, state.step)
        # act: a term is taken on what the student writes now, or on what the teacher has written
        written = [
            pair.write(mine, terms, mixed_seed(seed, state.step, micro))
            for micro, rows_B in enumerate(micro_batches)
            if len(mine := ranks.mine(rows_B, micro, pair.tokens(rows_B, terms)))
        ]
        values = summary(written, terms, ranks)
        count = int(sum(values[f"{term.writer}_tokens"] for term in terms))
        seen: dict[str, list[Tensor]] = {name: [] for name in ("loss", *(f"{term.writer}_term" for term in terms))}
        for part in written:
            # judge and learn: the sum over t of D(p, q), the teacher's distributions against the student's
            with autocast(student.device, settings.optimizer.precision):
                objective, of_terms = pair.loss(part, terms, count)
            objective.backward()
            for name, value in {"loss": objective.detach(), **of_terms}.items():
                seen[name].append(value)
        shown = {n: sum(numbers) for n, numbers in state.apply(settings.optimizer, settings.steps, seen).items()}
        state.step += 1
        values |= {"loss": shown.pop("loss"), "grad_norm": shown.pop("grad_norm"), "tokens": float(count)}
        values |= {name: total / values[name.replace("term", "tokens")] for name, total in shown.items()}
        if settings.validates_at(state.step):
            values |= held_out.look(state)
        yield StepMetrics(state.step, values)
    restore(state)


@dataclass(frozen=True)
class Pair:
    """Student and teacher at work on the training inputs."""

    student: Model
    teacher: Model | None
    train: Transfer
    settings: DivergenceSettings
    num_tokens: int | None

    def tokens(self, rows_B: Tensor, terms: list[Term]) -> Tensor:
        """What rows of a micro-batch cost, as far as it is known before: the student may write up to the limit."""
        limit, outputs = self.settings.sampling.max_new_tokens, self.train.outputs
        given = outputs.lengths[rows_B].clamp(max=limit) if outputs is not None else limit
        written = [given if term.writer == "teacher" else limit for term in terms]
        return self.train.sources.tokens(sum(written), rows_B)

    def write(self, mine: Mine, terms: list[Term], seed: int) -> Written:
        """The sequences of this rank's rows of a micro-batch. If that is the only one, its encoder states are kept."""
        student, settings = self.student, self.settings
        memory: Memory | None = None
        outputs: list[Responses] = []
        for term in terms:
            if term.writer == "teacher":
                outputs.append(self._given(mine.rows_B))
                continue
            sources, share = self.train.sources.student, settings.batch.micro_batches == 1
            rollout, memory = act(student, sources, mine, settings, seed, keep_memory=share, num_tokens=self.num_tokens)
            outputs.append(rollout)
        return Written(mine.rows_B, [counted(each, mine) for each in outputs], memory)

    def _given(self, rows_B: Tensor) -> Responses:
        """What the teacher wrote for these rows, cut to the length limit."""
        assert self.train.outputs is not None  # the stage reads them wherever a term needs them
        limit = self.settings.sampling.max_new_tokens
        require_length("max_new_tokens", limit)
        tokens_BT, mask_BT = (x_BT[:, :limit] for x_BT in padded_rows(self.student, self.train.outputs, rows_B))
        return Responses(tokens_BT, mask_BT, truncated_rows(tokens_BT, mask_BT, self.student.config.eos_token_id))

    def loss(self, part: Written, terms: list[Term], count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of an update of `count` tokens, and the summed divergence of each term, in nats."""
        head = head_of(self.student, self.num_tokens)
        memory = part.memory or encode_rows(self.student, self.train.sources.student, part.rows_B)
        labels, teacher_memory = self.train.labels, None
        if labels is None or any(term.writer == "student" for term in terms):
            with torch.no_grad():
                teacher_memory = encode_rows(self.teacher, self.train.sources.teacher, part.rows_B)
        losses, sums = [], {}
        for term, each in zip(terms, part.outputs, strict=True):
            hidden_MD, _ = target_states(self.student, memory, each.tokens_BT, each.mask_BT)
            seen: TeacherStates | TeacherLabels
            if labels is not None and term.writer == "teacher":
                kept = labels.of(part.rows_B, each.mask_BT.sum(dim=1).cpu(), hidden_MD.device)
                seen = as_teacher(kept, len(head))
            else:
                assert teacher_memory is not None
                seen = self._judged(teacher_memory, each, len(head))
            ones_M = torch.ones(len(hidden_MD), device=hidden_MD.device)
            loss, divergence_M = divergence_loss(hidden_MD, head, seen, ones_M, term.divergence)
            losses.append(loss / count)
            sums[f"{term.writer}_term"] = divergence_M.sum()
        return torch.stack(losses).sum(), sums

    def _judged(self, memory: Memory, written: Responses, num_tokens: int) -> TeacherStates | TeacherLabels:
        """The teacher's view of what is written."""
        if isinstance(self.teacher, RemoteModel):
            return teacher_top_k(self.teacher, memory, written, self.train.top_k, num_tokens)
        return teacher_states(self.teacher, memory, written, self.num_tokens)


def summary(written: list[Written], terms: list[Term], ranks: Ranks = ALONE) -> dict[str, float]:
    """Tokens of each writer, and of the student's samples their mean length and the share that was cut off."""
    values = {}
    for number, term in enumerate(terms):
        outputs = [part.outputs[number] for part in written]
        shown = lengths(outputs, ranks)
        values[f"{term.writer}_tokens"] = shown.pop("tokens")
        if term.writer == "student":
            values |= shown
    return values
