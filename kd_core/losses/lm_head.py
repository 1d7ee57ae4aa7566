"""The LM head in chunks of positions: no (B, T, V) tensor ever exists.

Shape legend: M tokens, D model width, V vocabulary, C tokens of one chunk.

Rewards need the logit of one token and a summary over V; the policy gradient needs log q(y_t) and, going back,
(softmax - one-hot) times a weight known beforehand. Both are computed chunk by chunk in float32, keeping (M,). The
plain full-logit versions are the oracle in tests/kd_core/losses/test_lm_head.py and the reference in benchmarks/.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_NUMBERS = 4 * 1024 * 1024  # float32 numbers of one chunk of logits: 16 MiB, about a large cache


ValueKind = Literal["max", "softmax", "logsumexp"]  # what stands for all of V at a position


@dataclass(frozen=True)
class TokenScores:
    """What a teacher says of given tokens. Each (M,), float32, in logits (nats up to a constant of the state)."""

    logit_M: Tensor
    value_M: Tensor  # the largest logit, E_p[logit] or the logsumexp
    mean_M: Tensor


def full_precision(x: Tensor) -> Tensor:
    """Half precision to float32; float64 stays, so that the equation tests can be exact."""
    return x if x.dtype == torch.float64 else x.float()


def chunk_rows(num_rows: int, vocab_size: int) -> Iterator[slice]:
    """Slices of rows such that one chunk of logits holds about CHUNK_NUMBERS numbers."""
    step = max(1, CHUNK_NUMBERS // vocab_size)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


@torch.no_grad()
def token_scores(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, value: ValueKind) -> TokenScores:
    """Logit of each target, the mean over V, and the one summary over V that is asked for.

    Shapes: (M, D), (V, D), (M,) -> three (M,) in float32. The mean of the logits is the logit of the head's mean row:
    it costs no pass over V.
    """
    dtype = full_precision(hidden_MD[:0]).dtype
    # filled in place: small results of each chunk, kept apart, would pin the heap between the large ones
    logit_M, value_M = hidden_MD.new_empty((2, hidden_MD.shape[0]), dtype=dtype)
    for rows in chunk_rows(hidden_MD.shape[0], weight_VD.shape[0]):
        logits_CV = full_precision(F.linear(hidden_MD[rows], weight_VD))
        logit_M[rows] = logits_CV.gather(1, target_M[rows, None]).squeeze(1)
        value_M[rows] = _summary(logits_CV, value)
    mean_M = full_precision(hidden_MD) @ weight_VD.mean(dim=0, dtype=dtype)
    return TokenScores(logit_M, value_M, mean_M)


def _summary(logits_CV: Tensor, value: ValueKind) -> Tensor:
    """(C, V) -> (C,). Writes over the logits where it can."""
    largest_C = logits_CV.amax(dim=1)
    if value == "max":
        return largest_C
    below_CV = logits_CV.sub_(largest_C[:, None])
    if value == "logsumexp":
        return below_CV.exp_().sum(dim=1).log_().add_(largest_C)
    weight_CV = below_CV.exp()
    return weight_CV.mul_(below_CV).sum(dim=1).div_(below_CV.exp_().sum(dim=1)).add_(largest_C)


@dataclass(frozen=True)
class PolicyTerms:
    """Detached by-products of `weighted_nll`, each (M,) float32: log q of the targets and the entropy of q, in nats."""

    log_prob_M: Tensor
    entropy_M: Tensor | None


def weighted_nll(
    hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, coefficient_M: Tensor, entropy_coefficient: float = 0.0
) -> tuple[Tensor, PolicyTerms]:
    """-sum_m coefficient_m log q(target_m) - entropy_coefficient sum_m H(q_m), differentiable in hidden and head.

    With coefficient 1/M it is the mean cross-entropy; with G_t/M it is REINFORCE's surrogate loss (LLMR, under
    Eq. 4). The coefficients are constants: no gradient flows into them. Because they are known before the logits,
    loss and gradients come from one pass over each chunk, and nothing of size V survives it.

    Shapes: (M, D), (V, D), (M,), (M,) -> scalar float32 and `PolicyTerms`. Raises ValueError if M differs between
    arguments.
    """
    if not hidden_MD.shape[0] == target_M.shape[0] == coefficient_M.shape[0]:
        sizes = (hidden_MD.shape[0], target_M.shape[0], coefficient_M.shape[0])
        raise ValueError(f"hidden, target and coefficient must have the same number of tokens, got {sizes}")
    loss, log_prob_M, entropy_M = _WeightedNLL.apply(  # type: ignore[no-untyped-call]
        hidden_MD, weight_VD, target_M, coefficient_M.detach(), entropy_coefficient
    )
    return loss, PolicyTerms(log_prob_M, entropy_M if entropy_coefficient else None)


class HeadGradients:
    """Gradients of hidden states and head, gathered from chunks of the gradient of the logits: of what is wanted only.

    For a loss whose gradient is known in its forward pass: that pass gathers it, and backward only scales it.
    """

    def __init__(self, hidden_MD: Tensor, weight_VD: Tensor, wants_hidden: bool, wants_weight: bool) -> None:
        self.hidden_MD, self.weight_VD, self.wanted = hidden_MD, weight_VD, wants_hidden or wants_weight
        dtype = full_precision(hidden_MD[:0]).dtype
        self.of_hidden_MD = torch.empty_like(hidden_MD) if wants_hidden else None
        self.of_weight_VD = weight_VD.new_zeros(weight_VD.shape, dtype=dtype) if wants_weight else None

    def add(self, rows: slice, grad_CV: Tensor) -> None:
        """Take in the gradient of the logits of `rows`. Shapes: (C, V)."""
        low_CV = grad_CV.to(self.weight_VD.dtype)
        if self.of_hidden_MD is not None:
            self.of_hidden_MD[rows] = low_CV @ self.weight_VD
        if self.of_weight_VD is None:
            return
        if self.of_weight_VD.dtype == low_CV.dtype:
            self.of_weight_VD.addmm_(low_CV.T, self.hidden_MD[rows])  # no second (V, D) tensor
        else:
            self.of_weight_VD += low_CV.T @ self.hidden_MD[rows]

    def save(self, ctx: Any) -> None:
        """Keep them for `scaled`."""
        ctx.save_for_backward(self.of_hidden_MD, self.of_weight_VD)
        ctx.weight_dtype = self.weight_VD.dtype

    @staticmethod
    def scaled(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What backward returns for hidden states and head."""
        hidden_MD, weight_VD = ctx.saved_tensors
        hidden = None if hidden_MD is None else hidden_MD * scale
        return hidden, None if weight_VD is None else (weight_VD * scale).to(ctx.weight_dtype)


class _WeightedNLL(torch.autograd.Function):
    """Forward computes the gradients too, where they are wanted; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        target_M: Tensor,
        coefficient_M: Tensor,
        entropy_coefficient: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradients = HeadGradients(hidden_MD, weight_VD, *ctx.needs_input_grad[:2])
        float_dtype = full_precision(hidden_MD[:0]).dtype
        log_prob_M = hidden_MD.new_empty(target_M.shape, dtype=float_dtype)
        entropy_M = torch.zeros_like(log_prob_M)
        for rows in chunk_rows(hidden_MD.shape[0], weight_VD.shape[0]):
            logits_CV = full_precision(F.linear(hidden_MD[rows], weight_VD))
            below_CV = logits_CV.sub_(logits_CV.amax(dim=1, keepdim=True))
            log_prob_C1 = below_CV.gather(1, target_M[rows, None])
            grad_CV = below_CV.exp() if entropy_coefficient else below_CV.exp_()
            sum_C1 = grad_CV.sum(dim=1, keepdim=True)
            log_prob_C1 -= sum_C1.log()
            log_prob_M[rows] = log_prob_C1.squeeze(1)
            if not gradients.wanted and not entropy_coefficient:
                continue
            if entropy_coefficient:
                grad_CV /= sum_C1
                log_q_CV = below_CV.sub_(sum_C1.log())
                entropy_M[rows] = -torch.linalg.vecdot(grad_CV, log_q_CV)
                # d(-c H)/d logit_j = c q_j (log q_j + H), beside the likelihood's w q_j
                factor_CV = log_q_CV.add_(entropy_M[rows, None]).mul_(entropy_coefficient)
                grad_CV *= factor_CV.add_(coefficient_M[rows, None])
            else:
                grad_CV *= coefficient_M[rows, None] / sum_C1
            if gradients.wanted:
                grad_CV.scatter_add_(1, target_M[rows, None], -coefficient_M[rows, None].to(float_dtype))
                gradients.add(rows, grad_CV)
        gradients.save(ctx)
        ctx.mark_non_differentiable(log_prob_M, entropy_M)
        loss = -(coefficient_M * log_prob_M).sum() - entropy_coefficient * entropy_M.sum()
        return loss, log_prob_M, entropy_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *HeadGradients.scaled(ctx, grads[0]), None, None, None


@torch.no_grad()
def token_log_probs(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
    """log q(target) in nats, without a gradient. Shapes: (M, D), (V, D), (M,) -> (M,) float32."""
    scores = token_scores(hidden_MD, weight_VD, target_M, "logsumexp")
    return scores.logit_M - scores.value_M
