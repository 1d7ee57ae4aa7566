"""A divergence and its gradient from hidden states, through both LM heads, in chunks of positions: no (B, T, V) tensor.

Shape legend: M tokens, D student width, E teacher width, V vocabulary, C tokens of one chunk, P of one part of it. p is
the teacher's distribution, q the student's, z the student's logits. Nats.

With g = dD/dq, the gradient of every divergence D(p, q) is dD/dz = q (g - sum_V q g):

    forward_kl         D = sum p log(p / q)              g = -p / q                        dD/dz = q - p
    reverse_kl         D = sum q log(q / p)              g = log(q / p) + 1                dD/dz = q (log(q / p) - D)
    js_teacher_term    D = beta sum p log(p / m)         g = -beta (1 - beta) p / m
    js_student_term    D = (1 - beta) sum q log(q / m)   g = (1 - beta) (log(q / m) + 1 - (1 - beta) q / m)
    js                 D = both of them                  g = (1 - beta) log(q / m)

with m = beta p + (1 - beta) q. `divergences` has the definitions, and how others count beta; it is the oracle.
Teacher and student may have different widths, but one vocabulary: heads padded to different sizes are cut to the
tokens that can be named (`policy.head(model, num_tokens)`) before they come here. In place of the teacher's states its
labels do (`soft_targets`): each D is sum q f(p / q), which is what labels with a bucket need.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.divergences import log_ratios
from kd_core.losses.exponential import exp, exp_
from kd_core.losses.head import Head, HeadGradients, dot, full_precision
from kd_core.losses.lm_head import chunk_rows
from kd_core.losses.soft_targets import LEAST, HiddenLabels, TeacherLabels

PARTS = 4  # of a chunk: products want many rows, what is done to each number wants them in a small cache

DivergenceKind = Literal["forward_kl", "reverse_kl", "js_teacher_term", "js_student_term", "js"]


@dataclass(frozen=True)
class Divergence:
    """Which divergence; beta is the teacher's share of the mixture, and no matter to the two KLs."""

    kind: DivergenceKind
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.kind.startswith("js") and not 0 < self.beta < 1:
            raise ValueError(f"beta must be in (0, 1), got {self.beta}")

    @classmethod
    def generalised_jsd(cls, beta: float) -> "Divergence":
        """GKD's, as TRL has it: forward KL at beta 0, reverse KL at beta 1, JS between them."""
        kinds: dict[float, DivergenceKind] = {0.0: "forward_kl", 1.0: "reverse_kl"}
        return cls(kinds.get(beta, "js"), beta)


@dataclass(frozen=True)
class TeacherStates:
    """The teacher's view of M tokens: its final hidden states and its head."""

    hidden_ME: Tensor
    head: Head

    def __len__(self) -> int:
        """M."""
        return len(self.hidden_ME)


def as_teacher(labels: TeacherLabels, num_tokens: int) -> "TeacherStates | TeacherLabels":
    """Labels of a batch for `divergence_loss`: hidden ones are states again, as the teacher had them."""
    if not isinstance(labels, HiddenLabels):
        return labels
    head = labels.head.first(num_tokens)
    return TeacherStates(labels.hidden_ME[:].to(head.weight_VD.dtype), head)


def divergence_loss(
    hidden_MD: Tensor,
    head: Head,
    teacher: TeacherStates | TeacherLabels,
    coefficient_M: Tensor,
    divergence: Divergence,
) -> tuple[Tensor, Tensor]:
    """sum_m coefficient_m D(p_m, q_m), differentiable in the student's hidden states and head; and every D(p_m, q_m).

    The coefficients are constants (1 / M makes it the mean); nothing flows into them or into the teacher. Loss and
    gradient come from one pass over each chunk.

    Shapes: (M, D) and (M, E) with a head of V each (or labels of M), (M,) -> scalar and detached (M,), float32 or
    better. Raises ValueError if M or V differ between arguments.
    """
    if not len(hidden_MD) == len(teacher) == len(coefficient_M):
        sizes = (len(hidden_MD), len(teacher), len(coefficient_M))
        raise ValueError(f"student, teacher and coefficient must have the same number of tokens, got {sizes}")
    if isinstance(teacher, TeacherStates) and len(head) != len(teacher.head):
        heads = (len(head), len(teacher.head))
        raise ValueError(f"student and teacher must have one vocabulary, got heads of {heads} tokens; give num_tokens")
    loss, divergence_M = _DivergenceLoss.apply(  # type: ignore[no-untyped-call]
        hidden_MD, head.weight_VD, head.bias_V, head, teacher, coefficient_M.detach(), divergence
    )
    return loss, divergence_M


class _DivergenceLoss(torch.autograd.Function):
    """Forward gathers the gradients too, where they are wanted; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        _weight_VD: Tensor,
        _bias_V: Tensor | None,
        head: Head,
        teacher: TeacherStates | TeacherLabels,
        coefficient_M: Tensor,
        divergence: Divergence,
    ) -> tuple[Tensor, Tensor]:
        gradients = HeadGradients(hidden_MD, head, ctx.needs_input_grad[:3])
        dtype = full_precision(hidden_MD[:0]).dtype
        divergence_M = hidden_MD.new_empty(len(hidden_MD), dtype=dtype)
        for rows in chunk_rows(len(hidden_MD), len(head), hidden_MD.device):
            seen = teacher.head.logits(teacher.hidden_ME[rows]) if isinstance(teacher, TeacherStates) else teacher
            grad_CV = gradients.logits(rows)  # the student's logits, overwritten
            of_chunk_C, coefficient_C1 = divergence_M[rows], coefficient_M[rows, None]
            for part in chunk_rows(len(grad_CV), PARTS * len(head), hidden_MD.device):
                log_q_PV = F.log_softmax(grad_CV[part], dim=1, dtype=dtype)
                log_p_PV = _log_p(seen, rows.start, part, log_q_PV)
                of_chunk_C[part], grad_PV = value_and_gradient(log_p_PV, log_q_PV, divergence)
                if gradients.wanted:
                    torch.mul(grad_PV, coefficient_C1[part], out=grad_CV[part])
            if gradients.wanted:
                gradients.add(rows, grad_CV)
        gradients.save(ctx)
        ctx.mark_non_differentiable(divergence_M)
        return (coefficient_M * divergence_M).sum(), divergence_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *HeadGradients.scaled(ctx, grads[0]), None, None, None, None


def _log_p(seen: Tensor | TeacherLabels, first: int, part: slice, log_q_PV: Tensor) -> Tensor:
    """log p of a part of a chunk: from the chunk's logits, or from labels, finite where p is 0. Shapes: -> (P, V)."""
    if isinstance(seen, Tensor):
        return F.log_softmax(seen[part], dim=1, dtype=log_q_PV.dtype)
    rows = slice(first + part.start, first + part.stop)
    return seen.probabilities(rows, log_q_PV).to(log_q_PV.dtype).log_().clamp_(min=LEAST)


def value_and_gradient(log_p_CV: Tensor, log_q_CV: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """D and dD/dz of each position. Writes over its inputs. Shapes: (C, V), (C, V) -> (C,), (C, V)."""
    if divergence.kind == "forward_kl":
        p_CV = exp(log_p_CV)
        value_C = dot(p_CV, log_p_CV.sub_(log_q_CV))
        return value_C, exp_(log_q_CV).sub_(p_CV)
    if divergence.kind == "reverse_kl":
        q_CV = exp(log_q_CV)
        log_ratio_CV = log_q_CV.sub_(log_p_CV)
        value_C = dot(q_CV, log_ratio_CV)
        return value_C, q_CV.mul_(log_ratio_CV.sub_(value_C[:, None]))
    return _js(log_p_CV, log_q_CV, divergence)


def _js(log_p_CV: Tensor, log_q_CV: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """Either term of JS, or both; see the table above."""
    beta = divergence.beta
    log_p_over_m_CV, log_q_over_m_CV = log_ratios(log_p_CV, log_q_CV, beta)
    p_CV, q_CV = exp_(log_p_CV), exp_(log_q_CV)
    teacher_C = beta * dot(p_CV, log_p_over_m_CV)
    student_C = (1 - beta) * dot(q_CV, log_q_over_m_CV)
    if divergence.kind == "js_teacher_term":
        value_C, g_CV = teacher_C, exp_(log_p_over_m_CV).mul_(-beta * (1 - beta))
    elif divergence.kind == "js_student_term":
        value_C = student_C
        g_CV = (log_q_over_m_CV - (1 - beta) * exp(log_q_over_m_CV)).mul_(1 - beta)
    else:
        value_C, g_CV = teacher_C + student_C, log_q_over_m_CV.mul_(1 - beta)
    return value_C, q_CV.mul_(g_CV.sub_(dot(q_CV, g_CV)[:, None]))
