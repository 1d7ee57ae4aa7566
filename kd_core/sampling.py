"""Rollouts: the student writes by itself.

Shape legend: B sources, T length limit, R rows still running, V vocabulary.

Tokens are drawn by inverting the cumulative distribution at one uniform number per row and position, drawn up front
from a generator of its own: what a row becomes does not depend on which other rows have ended, so dropping finished
rows changes nothing, and a rollout can be drawn again from its seed. [ours]
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.lm_head import full_precision
from kd_core.masking import mask_through_eos, truncated_rows
from kd_core.t5 import Memory, Model, head_weight
from kd_core.t5_steps import StepDecoder

Choose = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # logits, rows, position -> tokens, log-probabilities


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How rollouts are drawn.

    top_k, top_p and temperature reshape the distribution in this order: temperature, top_k, top_p.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0  # 0 = the whole vocabulary
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


@dataclass(frozen=True)
class Rollout:
    """Sampled outputs. Padding after the end is `pad_id`; `mask_BT` is the only thing that says where it is."""

    tokens_BT: Tensor
    mask_BT: Tensor  # True through the first end of sequence
    log_prob_BT: Tensor  # log-probability under the distribution really sampled from, in nats; 0 where masked
    truncated_B: Tensor  # True where the limit came before the end of sequence


@torch.no_grad()
def sample(
    model: Model,
    memory: Memory,
    settings: SamplingSettings,
    generator: torch.Generator,
    *,
    num_tokens: int | None = None,
) -> Rollout:
    """Draw one output per source from the student's own distribution.

    Shapes: Memory of B sources -> Rollout with (B, T'), T' <= max_new_tokens. `num_tokens` limits the vocabulary
    to what the tokenizer can name. Source: LLMR Eq. 1, y ~ q_theta; METHODS 1.7 for the log-probability of a
    reshaped distribution.
    """
    num_sources = memory.layout.mask_BS.shape[0]
    device = memory.hidden_ND.device
    uniform_BT = torch.rand((num_sources, settings.max_new_tokens), generator=generator, device=generator.device)
    uniform_BT = uniform_BT.to(device)

    def choose(logits_RV: Tensor, rows_R: Tensor, position: int) -> tuple[Tensor, Tensor]:
        return draw(logits_RV, uniform_BT[rows_R, position], settings)

    return _roll_out(model, memory, settings.max_new_tokens, choose, num_tokens)


@torch.no_grad()
def greedy(model: Model, memory: Memory, max_new_tokens: int, *, num_tokens: int | None = None) -> Rollout:
    """The most probable token at every step. Shapes as `sample`; `log_prob_BT` is that of the chosen tokens."""

    def choose(logits_RV: Tensor, rows_R: Tensor, position: int) -> tuple[Tensor, Tensor]:
        logits_RV = full_precision(logits_RV)
        best_R, token_R = logits_RV.max(dim=1)
        return token_R, best_R - logits_RV.logsumexp(dim=1)

    return _roll_out(model, memory, max_new_tokens, choose, num_tokens)


def draw(logits_RV: Tensor, uniform_R: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution at `uniform_R`.

    Shapes: (R, V), (R,) in [0, 1) -> (R,) tokens, (R,) log-probabilities under the reshaped, renormalised distribution.
    """
    logits_RC, ids_RC = reshape_logits(logits_RV, settings)
    log_q_RC = F.log_softmax(logits_RC, dim=1)
    cumulative_RC = log_q_RC.exp().cumsum_(dim=1)
    # Scaled by the last entry, which rounding keeps from being exactly 1: every u then falls on a token.
    threshold_R1 = uniform_R[:, None].to(cumulative_RC.dtype) * cumulative_RC[:, -1:]
    column_R1 = torch.searchsorted(cumulative_RC, threshold_R1, right=True).clamp_(max=cumulative_RC.shape[1] - 1)
    token_R1 = column_R1 if ids_RC is None else ids_RC.gather(1, column_R1)
    return token_R1.squeeze(1), log_q_RC.gather(1, column_R1).squeeze(1)


def reshape_logits(logits_RV: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor | None]:
    """Temperature, then the top_k candidates, then the smallest set of them with probability top_p.

    Shapes: (R, V) -> (R, C) logits and, when C candidates were picked out, their (R, C) token ids.
    """
    logits_RC, ids_RC = full_precision(logits_RV) / settings.temperature, None
    vocab_size = logits_RC.shape[1]
    if 0 < settings.top_k < vocab_size:
        logits_RC, ids_RC = logits_RC.topk(settings.top_k, dim=1)
    if settings.top_p < 1:
        if ids_RC is None:
            logits_RC, ids_RC = logits_RC.sort(dim=1, descending=True)
        probability_RC = logits_RC.softmax(dim=1)
        before_RC = probability_RC.cumsum(dim=1) - probability_RC
        logits_RC = logits_RC.masked_fill(before_RC >= settings.top_p, float("-inf"))
    return logits_RC, ids_RC


def _roll_out(model: Model, memory: Memory, max_new_tokens: int, choose: Choose, num_tokens: int | None) -> Rollout:
    eos_id, pad_id = model.config.eos_token_id, model.config.pad_token_id
    num_sources, device = memory.layout.mask_BS.shape[0], memory.hidden_ND.device
    weight_VD = head_weight(model, num_tokens)
    tokens_BT = torch.full((num_sources, max_new_tokens), pad_id, device=device)
    log_prob_BT = full_precision(memory.hidden_ND.new_zeros((num_sources, max_new_tokens)))
    decoder = StepDecoder(model, memory, max_new_tokens)
    rows_R = torch.arange(num_sources, device=device)
    token_R = torch.full_like(rows_R, model.config.decoder_start_token_id)
    for position in range(max_new_tokens):
        token_R, log_prob_R = choose(F.linear(decoder.step(token_R), weight_VD), rows_R, position)
        tokens_BT[rows_R, position] = token_R
        log_prob_BT[rows_R, position] = log_prob_R
        going_on = (token_R != eos_id).nonzero().squeeze(1)
        if going_on.numel() == 0:
            break
        if going_on.numel() < rows_R.numel():
            decoder.keep(going_on)
            rows_R, token_R = rows_R[going_on], token_R[going_on]
    tokens_BT, log_prob_BT = tokens_BT[:, : position + 1], log_prob_BT[:, : position + 1]
    mask_BT = mask_through_eos(tokens_BT, eos_id)
    return Rollout(tokens_BT, mask_BT, log_prob_BT, truncated_rows(tokens_BT, mask_BT, eos_id))
