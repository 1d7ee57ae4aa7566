"""Exposure bias as excess error: how much more a student errs after its own prefixes than after the teacher's.

    D_s(l) = E over y ~ student of [ sum over t <= l of KL(p(. | y_<t, x) || q(. | y_<t, x)) ],   D_t(l): y ~ teacher
    ExError%(l) = (D_s(l) - D_t(l)) / D_t(l) * 100

p is the teacher's distribution, which reads the prompt, q the student's, which reads the bare source. The outer
expectation is over sampled outputs; the inner one is a sum over the vocabulary, exact. After the end of an output
nothing is added. Source: METHODS.md section 1, Metrics; LLMR, Figure 2.

Shape legend: B outputs, S source positions, T positions, M real tokens, D model width; N inputs, L lengths, S samples
(the inputs as they are, then the resamples).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_core.losses.divergence_head import Divergence, TeacherStates, divergence_loss
from kd_core.metrics.bootstrap import MetricValue, Resamples, summarise
from kd_core.metrics.intervals import Floats
from kd_core.metrics.ratios import quotient
from kd_core.models.policy import encode, head_of, target_states


@dataclass(frozen=True)
class Reader:
    """A model and the (B, S) sources, with mask, that it reads."""

    model: Any
    source_BS: Tensor
    mask_BS: Tensor


@torch.no_grad()
def prefix_kl(
    teacher: Reader, student: Reader, tokens_BT: Tensor, mask_BT: Tensor, *, num_tokens: int | None = None
) -> Tensor:
    """KL(p || q) after every prefix of given outputs. Shapes: (B, T), (B, T) -> (B, T), 0 where masked."""
    seen = []
    for reader in (teacher, student):
        model = reader.model
        memory = encode(model, reader.source_BS, reader.mask_BS)
        hidden_MD, layout = target_states(model, memory, tokens_BT, mask_BT)
        seen.append((hidden_MD, head_of(model, num_tokens)))
    ones_M = hidden_MD.new_ones(len(hidden_MD))
    _, kl_M = divergence_loss(*seen[1], TeacherStates(*seen[0]), ones_M, Divergence("forward_kl"))
    return layout.pad(kl_M)


@dataclass(frozen=True, kw_only=True)
class ExcessError:
    """The curve at one length: D_s and D_t in nats per output, and ExError% with its pointwise 95 % band."""

    length: int
    d_student: float
    d_teacher: float
    value: MetricValue


def excess_error(student_NL: Floats, teacher_NL: Floats, resamples: Resamples) -> list[ExcessError]:
    """ExError%(l) for l = 1 .. L, from what each input adds to D_s and D_t.

    student_NL, teacher_NL: step KL summed over t <= l after the student's and the teacher's prefixes, the mean over the
    samples of an input. The bootstrap draws inputs, both sides of one together. Undefined where D_t is 0: teacher and
    student are then the same. Raises ValueError if the shapes differ.
    """
    if student_NL.shape != teacher_NL.shape:
        raise ValueError(f"D_s and D_t need the same inputs and lengths, got {student_NL.shape}, {teacher_NL.shape}")
    weights_SN = resamples.weights_SN.astype(np.float64)
    above_SL, below_SL = weights_SN @ (student_NL - teacher_NL), weights_SN @ teacher_NL
    value_SL = quotient(100 * above_SL, below_SL)
    means = zip(student_NL.mean(axis=0), teacher_NL.mean(axis=0), value_SL.T, strict=True)
    return [
        ExcessError(
            length=length,
            d_student=float(d_student),
            d_teacher=float(d_teacher),
            value=summarise(
                "excess_error",
                value_S,
                num_outputs=len(student_NL),
                unit="%",
                undefined="teacher and student do not differ after the teacher's prefixes",
            ),
        )
        for length, (d_student, d_teacher, value_S) in enumerate(means, start=1)
    ]
