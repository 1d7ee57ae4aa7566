"""The LM head in chunks of positions: no (B, T, V) tensor ever exists.

Shape legend: M tokens, D model width, V vocabulary, C tokens of one chunk, W columns of one of its K blocks.

Rewards need the logit of one token and a summary over V; the policy gradient needs log q(y_t) and, going back,
(softmax - one-hot) times a weight known beforehand. Both are computed chunk by chunk in float32, keeping (M,). The
plain full-logit versions are the oracle in tests/kd_core/losses/test_lm_head.py and the reference in benchmarks/.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kd_core.losses.exponential import exp_below
from kd_core.losses.head import Head, HeadGradients, dot, full_precision

CHUNK_NUMBERS = 4 * 1024 * 1024  # float32 numbers of one chunk of logits: 16 MiB, about a large cache
CUDA_CHUNKS = 128  # chunks that a CUDA device's memory would hold: its products want many rows, and a loss holds a few
LEAST_LOGIT = -1.0e30  # nothing that a model says, and 0 after exp beside anything else
BLOCK_NUMBERS, BLOCK_ROWS = 256 * 1024, 512  # of a block, 1 MiB: about the cache of one core


ValueKind = Literal["max", "softmax", "logsumexp"]  # what stands for all of V at a position


@dataclass(frozen=True)
class TokenScores:
    """What a teacher says of given tokens. Each (M,), float32, in logits (nats up to a constant of the state)."""

    logit_M: Tensor
    value_M: Tensor  # the largest logit, E_p[logit] or the logsumexp
    mean_M: Tensor


def chunk_rows(num_rows: int, vocab_size: int, device: torch.device | None = None) -> Iterator[slice]:
    """Slices of rows such that one chunk of logits holds about `chunk_numbers` of the device that computes it."""
    step = max(1, chunk_numbers(device) // vocab_size)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def chunk_numbers(device: torch.device | None) -> int:
    """Float32 numbers of one chunk of logits: CHUNK_NUMBERS, and more where a CUDA device has the memory."""
    if device is None or device.type != "cuda":
        return CHUNK_NUMBERS
    memory: int = torch.cuda.get_device_properties(device).total_memory
    return max(CHUNK_NUMBERS, memory // (4 * CUDA_CHUNKS))


@torch.no_grad()
def token_scores(hidden_MD: Tensor, head: Head, target_M: Tensor, value: ValueKind) -> TokenScores:
    """Logit of each target, the mean over V, and the one summary over V that is asked for.

    Shapes: (M, D), a head of V, (M,) -> three (M,) in float32. A block of logits is summed up while it is in the cache,
    and blocks by the same formulas: the maximum of maxima, the logsumexp of logsumexps, the mean of expectations under
    the softmax of logsumexps. The mean of the logits is the logit of the head's mean row, where there is no softcap: it
    costs no pass over V.
    """
    dtype = full_precision(hidden_MD[:0]).dtype
    # filled in place: small results of each block, kept apart, would pin the heap between the large ones
    logit_M, value_M, mean_M = hidden_MD.new_empty((3, hidden_MD.shape[0]), dtype=dtype)
    for rows, width in blocks(hidden_MD.shape[0], len(head), hidden_MD.device):
        hidden_CD, target_C1 = hidden_MD[rows], target_M[rows, None]
        starts = range(0, len(head), width)
        logit_KC, value_KC, logsumexp_KC, sum_KC = hidden_MD.new_empty((4, len(starts), len(hidden_CD)), dtype=dtype)
        for k, start in enumerate(starts):
            logits_CW = full_precision(head.columns(start, start + width).logits(hidden_CD))
            inside_C1 = (target_C1 - start).clamp_(0, logits_CW.shape[1] - 1)
            logit_KC[k] = logits_CW.gather(1, inside_C1).squeeze(1)
            if not head.is_linear:
                sum_KC[k] = logits_CW.sum(dim=1)
            value_KC[k], logsumexp_KC[k] = _summary(logits_CW, value)
        logit_M[rows] = logit_KC.gather(0, target_C1.T // width).squeeze(0)
        value_M[rows] = _of_blocks(value_KC, logsumexp_KC, value)
        if not head.is_linear:
            mean_M[rows] = sum_KC.sum(dim=0) / len(head)
    if head.is_linear:
        mean_M = head.mean_logit(hidden_MD)
    return TokenScores(logit_M, value_M, mean_M)


def blocks(num_rows: int, vocab_size: int, device: torch.device) -> Iterator[tuple[slice, int]]:
    """Rows, and into how many tokens of the vocabulary at a time their logits are cut.

    A processor's core has a cache of its own, and multiplies many rows by few columns faster than few by many: blocks
    fit there. Elsewhere, and where one chunk holds all logits, with which nothing is gained, a block is a chunk.
    """
    if device.type != "cpu" or num_rows * vocab_size <= CHUNK_NUMBERS:
        yield from ((rows, vocab_size) for rows in chunk_rows(num_rows, vocab_size, device))
        return
    for start in range(0, num_rows, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, num_rows))
        yield rows, max(1, BLOCK_NUMBERS // (rows.stop - start))


def _summary(logits_CW: Tensor, value: ValueKind) -> tuple[Tensor, Tensor]:
    """The value of a block, and its logsumexp where it is needed. Shapes: (C, W) -> (C,), (C,)."""
    largest_C = logits_CW.amax(dim=1)
    if value == "max":
        return largest_C, largest_C
    largest_C.clamp_(min=LEAST_LOGIT)  # a block that is -inf throughout has a sum of 0, and no nan
    weight_CW = exp_below(logits_CW, largest_C[:, None])
    sum_C = weight_CW.sum(dim=1)
    logsumexp_C = largest_C.add_(sum_C.log())
    if value == "logsumexp":
        return logsumexp_C, logsumexp_C
    return dot(weight_CW, logits_CW).div_(sum_C), logsumexp_C


def _of_blocks(value_KC: Tensor, logsumexp_KC: Tensor, value: ValueKind) -> Tensor:
    """(K, C), (K, C) -> (C,)."""
    if value == "max":
        return value_KC.amax(dim=0)
    if value == "logsumexp":
        return logsumexp_KC.logsumexp(dim=0)
    return logsumexp_KC.softmax(dim=0).mul_(value_KC).sum(dim=0)


def weighted_nll(
    hidden_MD: Tensor, head: Head, target_M: Tensor, coefficient_M: Tensor, entropy_coefficient: float = 0.0
) -> Tensor:
    """-sum_m coefficient_m log q(target_m) - entropy_coefficient sum_m H(q_m), differentiable in hidden and head.

    With coefficient 1/M it is the mean cross-entropy; with G_t/M it is REINFORCE's surrogate loss (LLMR, under
    Eq. 4). The coefficients are constants: no gradient flows into them. Because they are known before the logits,
    loss and gradients come from one pass over each chunk, and nothing of size V survives it.

    Shapes: (M, D), a head of V, (M,), (M,) -> scalar float32. Raises ValueError if M differs between arguments.
    """
    if not hidden_MD.shape[0] == target_M.shape[0] == coefficient_M.shape[0]:
        sizes = (hidden_MD.shape[0], target_M.shape[0], coefficient_M.shape[0])
        raise ValueError(f"hidden, target and coefficient must have the same number of tokens, got {sizes}")
    loss: Tensor = _WeightedNLL.apply(  # type: ignore[no-untyped-call]
        hidden_MD, head.weight_VD, head.bias_V, head, target_M, coefficient_M.detach(), entropy_coefficient
    )
    return loss


class _WeightedNLL(torch.autograd.Function):
    """Forward computes the gradients too, where they are wanted; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        _weight_VD: Tensor,
        _bias_V: Tensor | None,
        head: Head,
        target_M: Tensor,
        coefficient_M: Tensor,
        entropy_coefficient: float,
    ) -> Tensor:
        gradients = HeadGradients(hidden_MD, head, ctx.needs_input_grad[:3])
        float_dtype = full_precision(hidden_MD[:0]).dtype
        log_prob_M = hidden_MD.new_empty(target_M.shape, dtype=float_dtype)
        entropy_M = torch.zeros_like(log_prob_M)
        for rows in chunk_rows(hidden_MD.shape[0], len(head), hidden_MD.device):
            logits_CV = gradients.logits(rows)
            largest_C1 = logits_CV.amax(dim=1, keepdim=True)
            log_prob_C1 = logits_CV.gather(1, target_M[rows, None]) - largest_C1
            grad_CV = exp_below(logits_CV, largest_C1, out=None if entropy_coefficient else logits_CV)
            sum_C1 = grad_CV.sum(dim=1, keepdim=True)
            log_prob_C1 -= sum_C1.log()
            log_prob_M[rows] = log_prob_C1.squeeze(1)
            if not gradients.wanted and not entropy_coefficient:
                continue
            if entropy_coefficient:
                grad_CV /= sum_C1
                log_q_CV = logits_CV.sub_(largest_C1 + sum_C1.log())
                entropy_M[rows] = -dot(grad_CV, log_q_CV)
                # d(-c H)/d logit_j = c q_j (log q_j + H), beside the likelihood's w q_j
                factor_CV = log_q_CV.add_(entropy_M[rows, None]).mul_(entropy_coefficient)
                grad_CV *= factor_CV.add_(coefficient_M[rows, None])
            else:
                grad_CV *= coefficient_M[rows, None] / sum_C1
            if gradients.wanted:
                grad_CV.scatter_add_(1, target_M[rows, None], -coefficient_M[rows, None].to(float_dtype))
                gradients.add(rows, grad_CV)
        gradients.save(ctx)
        return -(coefficient_M * log_prob_M).sum() - entropy_coefficient * entropy_M.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *HeadGradients.scaled(ctx, grads[0]), None, None, None, None


@torch.no_grad()
def token_log_probs(hidden_MD: Tensor, head: Head, target_M: Tensor) -> Tensor:
    """log q(target) in nats, without a gradient. Shapes: (M, D), a head of V, (M,) -> (M,) float32."""
    scores = token_scores(hidden_MD, head, target_M, "logsumexp")
    return scores.logit_M - scores.value_M
