"""DaD-DAgger's loss: the true next token and the teacher's distribution as one target, over chunks of V.

    loss = alpha * NLL + (1 - alpha) * KD                          Eq. 5
    KD   = - sum_w p(w | context) log q(w | context)               the whole vocabulary [ours: the prose; Eq. 7 as
                                                                    printed keeps the observed token only]
         = - sum_w t(w) log q(w),   t = alpha * one-hot + (1 - alpha) * p

Shape legend: M predictions, D student width, E teacher width, V vocabulary, K labels kept, C predictions of one chunk.

Ways to keep p on disk, each with the same reader (`probabilities`): the teacher's final hidden state (exact up to the
head's product), its K most probable tokens with the mass of the rest (spread evenly, which is biased, or as one more
outcome), or counts of tokens drawn from p (unbiased). `divergence_head` reads them too.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.exponential import exp_
from kd_core.losses.head import Head, HeadGradients, dot, full_precision
from kd_core.losses.lm_head import chunk_rows

LEAST = -1e4  # stands for the logarithm of 0: e to its power is 0, and times 0 it is 0


class Rows(Protocol):
    """(M, K) numbers, of which some rows are asked for at a time: a tensor, or what reads them from a disk."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Tensor: ...


class TeacherLabels(Protocol):
    """The teacher's distributions of M predictions, as they are kept."""

    def __len__(self) -> int:
        """M."""

    def probabilities(self, rows: slice, log_q_CV: Tensor) -> Tensor:
        """p of some predictions, as it is compared with q. Shapes: C rows, (C, V) -> (C, V), float32 or better."""

    def cross_entropy(self, rows: slice, p_CV: Tensor, log_q_CV: Tensor) -> Tensor:
        """-sum_w p(w) log q(w) of some predictions; p as in `probabilities`. Shapes: (C, V), (C, V) -> (C,)."""

    def of(self, index_B: Tensor, device: torch.device | None = None) -> "TeacherLabels":
        """The labels of a batch, where the loss is computed. Shapes: (B,) row numbers -> labels of B predictions."""

    def followed_by(self, other: Any) -> "TeacherLabels":
        """Labels of one kind, one after another."""


class _Dense:
    """Labels that are a distribution over V, whatever they are compared with."""

    def cross_entropy(self, rows: slice, p_CV: Tensor, log_q_CV: Tensor) -> Tensor:
        """See `TeacherLabels`."""
        return -dot(p_CV, log_q_CV)


@dataclass(frozen=True)
class HiddenLabels(_Dense):
    """The teacher's final states and its head: p = softmax(logits of h)."""

    hidden_ME: Rows
    head: Head

    def __len__(self) -> int:
        """See `TeacherLabels`."""
        return len(self.hidden_ME)

    def probabilities(self, rows: slice, log_q_CV: Tensor) -> Tensor:
        """See `TeacherLabels`."""
        head = self.head.first(log_q_CV.shape[1])
        return full_precision(head.logits(self.hidden_ME[rows].to(head.weight_VD.dtype))).softmax(dim=1)

    def of(self, index_B: Tensor, device: torch.device | None = None) -> "HiddenLabels":
        """See `TeacherLabels`."""
        return HiddenLabels(self.hidden_ME[index_B].to(device), self.head)

    def followed_by(self, other: "HiddenLabels") -> "HiddenLabels":
        """See `TeacherLabels`; both of one teacher."""
        return HiddenLabels(torch.cat([self.hidden_ME[:], other.hidden_ME[:]]), self.head)


@dataclass(frozen=True)
class _RowByRow(_Dense):
    """Labels whose every tensor has a row for each prediction."""

    ids_MK: Rows

    def __len__(self) -> int:
        """See `TeacherLabels`."""
        return len(self.ids_MK)

    def of(self, index_B: Tensor, device: torch.device | None = None) -> Self:
        """See `TeacherLabels`."""
        return replace(self, **{name: rows[index_B].to(device) for name, rows in vars(self).items()})

    def followed_by(self, other: Self) -> Self:
        """See `TeacherLabels`."""
        return replace(self, **{name: torch.cat([rows[:], vars(other)[name][:]]) for name, rows in vars(self).items()})


@dataclass(frozen=True)
class TopKLabels(_RowByRow):
    """The K most probable tokens of each prediction; what they leave of 1 is spread evenly over the others.

    Where fewer than K are known, places are empty: log p is -inf there, and the id another one's.
    """

    log_prob_MK: Rows  # nats, not renormalised

    def probabilities(self, rows: slice, log_q_CV: Tensor) -> Tensor:
        """See `TeacherLabels`."""
        ids_CK, top_CK, tail_C1 = self._parts(rows)
        kept_C1 = (self.log_prob_MK[rows] > float("-inf")).sum(dim=1, keepdim=True)
        others_C1 = (log_q_CV.shape[1] - kept_C1).clamp(min=1)
        return _put(top_CK, ids_CK, (tail_C1 / others_C1).repeat(1, log_q_CV.shape[1]))

    def _parts(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and probabilities of what is kept, (C, K), and what they leave of 1, (C, 1)."""
        top_CK = full_precision(self.log_prob_MK[rows]).exp()
        return self.ids_MK[rows].long(), top_CK, (1 - top_CK.sum(dim=1, keepdim=True)).clamp(min=0)


def _put(top_CK: Tensor, ids_CK: Tensor, others_CV: Tensor) -> Tensor:
    """What is kept in its places among the others, which it overwrites; an empty place adds 0 to another's."""
    return others_CV.scatter_(1, ids_CK, 0.0).scatter_add_(1, ids_CK, top_CK)


@dataclass(frozen=True)
class BucketLabels(TopKLabels):
    """The K most probable tokens of each prediction, and all others as one outcome: K + 1 in all.

    Of the others only their mass P is known, to be compared with q's, Q = sum of q over them. That is p spread over
    them as q is itself, p = q P / Q: a divergence sum_w q f(p / q) has Q f(P / Q) for the others then, and the same
    gradient where this p is a constant (f - r f' at r = P / Q for each of them). [ours]
    """

    def probabilities(self, rows: slice, log_q_CV: Tensor) -> Tensor:
        """See `TeacherLabels`."""
        ids_CK, top_CK, tail_C1 = self._parts(rows)
        share_CV = log_q_CV.scatter(1, ids_CK, float("-inf")).softmax(dim=1)  # of the others; no number if K is V
        return _put(top_CK.to(share_CV.dtype), ids_CK, share_CV.mul_(tail_C1))

    def cross_entropy(self, rows: slice, p_CV: Tensor, log_q_CV: Tensor) -> Tensor:
        """See `TeacherLabels`: of the K + 1 outcomes, for a cross-entropy is no divergence."""
        ids_CK, top_CK, tail_C1 = self._parts(rows)
        # summed over the others, not 1 - sum: the difference would drown in rounding where Q is small
        log_rest_C1 = log_q_CV.scatter(1, ids_CK, float("-inf")).logsumexp(dim=1, keepdim=True).clamp(min=LEAST)
        return -(top_CK * log_q_CV.gather(1, ids_CK)).sum(dim=1) - (tail_C1 * log_rest_C1).squeeze(1)


@dataclass(frozen=True)
class SampledLabels(_RowByRow):
    """How often each token came up in N draws from p. A token of count 0 is padding."""

    count_MK: Rows

    def probabilities(self, rows: slice, log_q_CV: Tensor) -> Tensor:
        """See `TeacherLabels`. The expectation over the draws is p: the loss, linear in p, is unbiased."""
        count_CK = self.count_MK[rows].float()
        share_CK = count_CK / count_CK.sum(dim=1, keepdim=True)
        return share_CK.new_zeros((len(share_CK), log_q_CV.shape[1])).scatter_add_(
            1, self.ids_MK[rows].long(), share_CK
        )


@dataclass(frozen=True)
class DistillationTerms:
    """Detached by-products of `distillation_loss`, each (M,): -log q of the true token, and KD, in nats."""

    nll_M: Tensor
    kd_M: Tensor


def distillation_loss(
    hidden_MD: Tensor, head: Head, target_M: Tensor, labels: TeacherLabels | None, alpha: float
) -> tuple[Tensor, DistillationTerms]:
    """Mean over predictions of alpha * NLL + (1 - alpha) * KD, differentiable in hidden states and head.

    Shapes: (M, D), a head of V, (M,), labels of M -> scalar and `DistillationTerms`. Source: DaD-DAgger, Eq. 5. Without
    labels (alpha must be 1: DaD) KD is 0. Raises ValueError for alpha outside [0, 1], or below 1 without labels.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if labels is None and alpha < 1:
        raise ValueError(f"alpha {alpha} needs the teacher's labels; only alpha 1 (DaD) does without")
    loss, nll_M, kd_M = _Distillation.apply(  # type: ignore[no-untyped-call]
        hidden_MD, head.weight_VD, head.bias_V, head, target_M, labels, alpha
    )
    return loss, DistillationTerms(nll_M, kd_M)


class _Distillation(torch.autograd.Function):
    """Loss and gradient of a chunk from one pass over its logits; the gradient of the logits is q - t."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        _weight_VD: Tensor,
        _bias_V: Tensor | None,
        head: Head,
        target_M: Tensor,
        labels: TeacherLabels | None,
        alpha: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradients = HeadGradients(hidden_MD, head, ctx.needs_input_grad[:3])
        num = len(target_M)
        dtype = full_precision(hidden_MD[:0]).dtype
        nll_M = hidden_MD.new_empty(num, dtype=dtype)
        kd_M = torch.zeros_like(nll_M)
        for rows in chunk_rows(num, len(head), hidden_MD.device):
            log_q_CV = F.log_softmax(gradients.logits(rows), dim=1)
            nll_M[rows] = -log_q_CV.gather(1, target_M[rows, None]).squeeze(1)
            grad_CV: Tensor | None = None
            if labels is not None:
                p_CV = labels.probabilities(rows, log_q_CV).to(dtype)
                kd_M[rows] = labels.cross_entropy(rows, p_CV, log_q_CV)
                grad_CV = p_CV.mul_(alpha - 1)
            if not gradients.wanted:
                continue
            q_CV = exp_(log_q_CV)
            grad_CV = q_CV if grad_CV is None else q_CV.add_(grad_CV)
            grad_CV.scatter_add_(1, target_M[rows, None], grad_CV.new_full((len(grad_CV), 1), -alpha)).div_(num)
            gradients.add(rows, grad_CV)
        gradients.save(ctx)
        ctx.mark_non_differentiable(nll_M, kd_M)
        return (alpha * nll_M + (1 - alpha) * kd_M).mean(), nll_M, kd_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *HeadGradients.scaled(ctx, grads[0]), None, None, None, None
