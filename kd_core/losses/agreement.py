"""How teacher and student see the same tokens: what users of on-policy distillation watch. No gradient.

Shape legend: M tokens, D student width, E teacher width, V vocabulary, C tokens of one chunk, P of one part of it. p is
the teacher's distribution, q the student's. Nats.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.divergence_head import PARTS, TeacherStates
from kd_core.losses.exponential import exp, exp_
from kd_core.losses.head import Head, dot, full_precision
from kd_core.losses.lm_head import chunk_rows

TOP = 16  # likeliest tokens of either side; the overlap that arXiv 2604.13016 found to tell good runs from bad


@dataclass(frozen=True)
class Agreement:
    """Each (M,), float32 or better; what concerns the student is None where none was asked."""

    log_prob_M: Tensor  # log p(y_t), the teacher's of the tokens themselves
    entropy_M: Tensor  # H(p)
    forward_kl_M: Tensor | None = None  # KL(p || q)
    reverse_kl_M: Tensor | None = None  # KL(q || p)
    overlap_M: Tensor | None = None  # share of the TOP likeliest tokens that both have among theirs, 0 to 1

    def by_name(self) -> dict[str, Tensor]:
        """What was asked for, as logs name it."""
        named = {
            "log_prob": self.log_prob_M,
            "teacher_entropy": self.entropy_M,
            "forward_kl": self.forward_kl_M,
            "reverse_kl": self.reverse_kl_M,
            "overlap": self.overlap_M,
        }
        return {name: x_M for name, x_M in named.items() if x_M is not None}


@torch.no_grad()
def agreement(teacher: TeacherStates, target_M: Tensor, student: tuple[Tensor, Head] | None = None) -> Agreement:
    """What the teacher makes of given tokens, and how far the student's distributions agree with its own.

    Both heads are read once, in chunks of positions.

    Shapes: TeacherStates of M tokens, (M,), (M, D) with a head of V -> `Agreement` of M tokens.
    """
    dtype = full_precision(teacher.hidden_ME[:0]).dtype
    found_5M = teacher.hidden_ME.new_zeros((5, len(target_M)), dtype=dtype)
    log_prob_M, entropy_M, forward_M, reverse_M, overlap_M = found_5M
    for rows in chunk_rows(len(target_M), PARTS * len(teacher.head), target_M.device):
        log_p_CV = F.log_softmax(teacher.head.logits(teacher.hidden_ME[rows]), dim=1, dtype=dtype)
        log_prob_M[rows] = log_p_CV.gather(1, target_M[rows, None]).squeeze(1)
        p_CV = exp(log_p_CV)
        entropy_M[rows] = -dot(p_CV, log_p_CV)
        if student is None:
            continue
        hidden_MD, head = student
        log_q_CV = F.log_softmax(head.logits(hidden_MD[rows]), dim=1, dtype=dtype)
        overlap_M[rows] = top_overlap(log_p_CV, log_q_CV).to(dtype)
        log_ratio_CV = log_q_CV - log_p_CV
        forward_M[rows] = -dot(p_CV, log_ratio_CV)
        reverse_M[rows] = dot(exp_(log_q_CV), log_ratio_CV)
    if student is None:
        return Agreement(log_prob_M, entropy_M)
    return Agreement(log_prob_M, entropy_M, forward_M, reverse_M, overlap_M)


def top_overlap(first_CV: Tensor, second_CV: Tensor, top: int = TOP) -> Tensor:
    """Share of the `top` largest columns of either that both have in theirs. Shapes: (C, V) twice -> (C,), 0 to 1."""
    top = min(top, first_CV.shape[1])
    first_CK, second_CK = (x_CV.topk(top, dim=1, sorted=False).indices for x_CV in (first_CV, second_CV))
    return (first_CK[:, :, None] == second_CK[:, None, :]).sum(dim=(1, 2)) / top
