"""Divergences between the teacher's and the student's next-token distributions, from full logits: the oracle.

Shape legend: B rows, T positions, V vocabulary. p is the teacher's distribution, q the student's. Nats.

    forward_kl  = KL(p || q) = sum_V p (log p - log q)
    reverse_kl  = KL(q || p)
    js          = beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q

beta is the teacher's share of the mixture everywhere here, and the weight of the teacher's term. How others write it:

- GKD (Agarwal et al. 2024, section 2): JSD(beta)(P || Q) with P the teacher is `js` at the same beta, for beta strictly
  between 0 and 1. JSD(beta) goes to 0 at both ends; JSD(beta) / beta goes to KL(p || q) for beta -> 0 and
  JSD(beta) / (1 - beta) to KL(q || p) for beta -> 1.
- TRL (GKDTrainer.generalized_jsd_loss): the same inside (0, 1), and at the ends these two limits themselves: beta 0 is
  the forward and beta 1 the reverse KL. It is `generalised_jsd` here. The size of the loss jumps at the ends.
- copies of TRL's formula that give the mixture the weights the other way round (m' = (1 - beta) p + beta q under
  beta KL(p || m') + (1 - beta) KL(q || m')) compute no Jensen-Shannon divergence unless beta = 1/2; none here does.
- f-distill (Wen et al. 2023) and LLMR's JS baseline: the two terms of `js` are expectations over different sequences,
  the teacher's term over what the teacher writes (`js_teacher_term`), the student's over what the student writes
  (`js_student_term`). On one and the same sequence they add up to `js`.

Half precision is raised to float32 before any softmax; float64 stays. The training loops use `divergence_head`,
which computes the same numbers without a (B, T, V) tensor.
"""

import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.head import full_precision


def forward_kl(teacher_logits_BTV: Tensor, student_logits_BTV: Tensor) -> Tensor:
    """KL(p || q) = sum_V p (log p - log q): mean-seeking; a KL, not a cross-entropy.

    Shapes: (B, T, V), (B, T, V) -> (B, T), nats. Raises ValueError if the shapes differ. Source: LLMR's KL baseline
    (METHODS 1), on sequences that the teacher writes.
    """
    log_p_BTV, log_q_BTV = _log_probs(teacher_logits_BTV, student_logits_BTV)
    return _kl(log_p_BTV, log_q_BTV)


def reverse_kl(teacher_logits_BTV: Tensor, student_logits_BTV: Tensor) -> Tensor:
    """KL(q || p) = sum_V q (log q - log p): mode-seeking.

    Shapes: (B, T, V), (B, T, V) -> (B, T), nats. Raises ValueError if the shapes differ. Source: LLMR's RKL baseline,
    and MiniLLM's single-step term, on sequences that the student writes.
    """
    log_p_BTV, log_q_BTV = _log_probs(teacher_logits_BTV, student_logits_BTV)
    return _kl(log_q_BTV, log_p_BTV)


def js_teacher_term(teacher_logits_BTV: Tensor, student_logits_BTV: Tensor, beta: float) -> Tensor:
    """beta KL(p || m), m = beta p + (1 - beta) q: what JS is on sequences that the teacher writes.

    Shapes: (B, T, V), (B, T, V) -> (B, T), nats. Raises ValueError for beta outside (0, 1) and if the shapes differ.
    """
    log_p_BTV, log_q_BTV = _log_probs(teacher_logits_BTV, student_logits_BTV)
    return beta * (log_p_BTV.exp() * log_ratios(log_p_BTV, log_q_BTV, beta)[0]).sum(dim=-1)


def js_student_term(teacher_logits_BTV: Tensor, student_logits_BTV: Tensor, beta: float) -> Tensor:
    """(1 - beta) KL(q || m), m = beta p + (1 - beta) q: what JS is on sequences that the student writes.

    Shapes: (B, T, V), (B, T, V) -> (B, T), nats. Raises ValueError for beta outside (0, 1) and if the shapes differ.
    """
    log_p_BTV, log_q_BTV = _log_probs(teacher_logits_BTV, student_logits_BTV)
    return (1 - beta) * (log_q_BTV.exp() * log_ratios(log_p_BTV, log_q_BTV, beta)[1]).sum(dim=-1)


def js(teacher_logits_BTV: Tensor, student_logits_BTV: Tensor, beta: float) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q: both terms at the same position.

    Shapes: (B, T, V), (B, T, V) -> (B, T), in [0, H(beta)] nats. Raises ValueError for beta outside (0, 1) and if the
    shapes differ. Source: GKD section 2, JSD(beta). Each token's part is at least 0 by itself (log-sum inequality)
    and exactly 0 where p = q, so rounding cannot make the sum negative by more than its last digits.
    """
    log_p_BTV, log_q_BTV = _log_probs(teacher_logits_BTV, student_logits_BTV)
    log_p_over_m_BTV, log_q_over_m_BTV = log_ratios(log_p_BTV, log_q_BTV, beta)
    return (beta * log_p_BTV.exp() * log_p_over_m_BTV + (1 - beta) * log_q_BTV.exp() * log_q_over_m_BTV).sum(dim=-1)


def generalised_jsd(teacher_logits_BTV: Tensor, student_logits_BTV: Tensor, beta: float) -> Tensor:
    """GKD's divergence as TRL has it: forward KL at beta 0, reverse KL at beta 1, `js` between them.

    Shapes: (B, T, V), (B, T, V) -> (B, T), nats. Raises ValueError for beta outside [0, 1] and if the shapes differ.
    """
    if beta == 0:
        return forward_kl(teacher_logits_BTV, student_logits_BTV)
    if beta == 1:
        return reverse_kl(teacher_logits_BTV, student_logits_BTV)
    return js(teacher_logits_BTV, student_logits_BTV, beta)


def log_ratios(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log(p / m) and log(q / m) with m = beta p + (1 - beta) q, both exactly 0 where p = q.

    Shapes: any two of one shape -> the same twice. Raises ValueError for beta outside (0, 1). Measured from the larger
    of p and q, so that nothing overflows: m / larger = 1 + weight of the smaller * (smaller / larger - 1).
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must be in (0, 1), got {beta}")
    log_p_over_q = log_p - log_q
    # the weight of the smaller: 1 - beta where p is larger, beta where q is (torch.where: longer than all the rest)
    weight = 0.5 if beta == 0.5 else log_p_over_q.detach().sign().mul_(0.5 - beta).add_(0.5)
    log_larger_over_m = -(weight * log_p_over_q.abs().neg().expm1()).log1p()
    return log_larger_over_m - F.relu(-log_p_over_q), log_larger_over_m - F.relu(log_p_over_q)


def _log_probs(teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, Tensor]:
    if teacher_logits.shape != student_logits.shape:
        shapes = f"{tuple(teacher_logits.shape)} and {tuple(student_logits.shape)}"
        raise ValueError(f"teacher and student logits must have one shape, got {shapes}")
    log_p, log_q = (F.log_softmax(full_precision(logits), dim=-1) for logits in (teacher_logits, student_logits))
    return log_p, log_q


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(dim=-1)
