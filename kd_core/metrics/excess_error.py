"""Exposure bias as excess error: how much more a student errs after its own prefixes than after the teacher's.

    D_s(l) = E over y ~ student of [ sum over t <= l of KL(p(. | y_<t, x) || q(. | y_<t, x)) ],   D_t(l): y ~ teacher
    ExError%(l) = (D_s(l) - D_t(l)) / D_t(l) * 100

p is the teacher's distribution, which reads the prompt, q the student's, which reads the bare source. The outer
expectation is over sampled outputs; the inner one is a sum over the vocabulary, exact. After the end of an output
nothing is added. Source: METHODS.md section 1, Metrics; LLMR, Figure 2.

Shape legend: B outputs, T positions, M real tokens, V vocabulary, D / E width of teacher / student, C tokens of a
chunk; N inputs, L lengths, S samples (the inputs as they are, then the resamples).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.lm_head import chunk_rows, full_precision
from kd_core.masking import shift_right
from kd_core.metrics.bootstrap import MetricValue, Resamples, summarise
from kd_core.metrics.intervals import Floats
from kd_core.models.policy import decode, encode, head_weight, start_tokens


@torch.no_grad()
def step_kl(
    teacher_hidden_MD: Tensor, teacher_weight_VD: Tensor, student_hidden_ME: Tensor, student_weight_VE: Tensor
) -> Tensor:
    """KL(p || q) of every step, in nats: sum over V of p (log p - log q), chunk by chunk through both heads.

    Shapes: (M, D), (V, D), (M, E), (V, E) -> (M,) float32. Raises ValueError if M or V differ.
    """
    if teacher_hidden_MD.shape[0] != student_hidden_ME.shape[0]:
        raise ValueError(
            f"both must have the same steps, got {teacher_hidden_MD.shape[0]} and {student_hidden_ME.shape[0]}"
        )
    if teacher_weight_VD.shape[0] != student_weight_VE.shape[0]:
        raise ValueError(
            f"both must have the same vocabulary, got {teacher_weight_VD.shape[0]} and {student_weight_VE.shape[0]}"
        )
    kl_M = full_precision(teacher_hidden_MD.new_empty(teacher_hidden_MD.shape[0]))
    for rows in chunk_rows(teacher_hidden_MD.shape[0], teacher_weight_VD.shape[0]):
        log_p_CV = full_precision(F.linear(teacher_hidden_MD[rows], teacher_weight_VD)).log_softmax(dim=1)
        log_q_CV = full_precision(F.linear(student_hidden_ME[rows], student_weight_VE)).log_softmax(dim=1)
        kl_M[rows] = torch.linalg.vecdot(log_p_CV.exp(), log_p_CV - log_q_CV)
    return kl_M


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
    hidden, weight = [], []
    for reader in (teacher, student):
        model = reader.model
        memory = encode(model, reader.source_BS, reader.mask_BS)
        states, layout = decode(model, memory, shift_right(tokens_BT, start_tokens(model, memory)), mask_BT)
        hidden.append(states)
        weight.append(head_weight(model, num_tokens))
    return layout.pad(step_kl(hidden[0], weight[0], hidden[1], weight[1]))


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
    with np.errstate(invalid="ignore", divide="ignore"):
        value_SL = np.where(below_SL > 0, 100 * above_SL / below_SL, np.nan)
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
