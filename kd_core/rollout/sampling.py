"""Rollouts: the student writes by itself.

Shape legend: B sources, T length limit, R rows still running, V vocabulary.

Tokens are drawn by inverting the cumulative distribution at one uniform number per row and position, drawn up front
from a generator of its own: what a row becomes does not depend on which other rows have ended, so dropping finished
rows changes nothing, and a rollout can be drawn again from its seed. [ours]
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kd_core.lengths import check_lengths, target_length
from kd_core.losses.exponential import exp_below
from kd_core.losses.head import full_precision
from kd_core.models.backends.sharded import whole
from kd_core.models.policy import Memory, Model, start_tokens, step_decoder, step_head
from kd_core.rollout.responses import Rollout, check_distribution, is_end, mask_through_eos, truncated_rows

LOOK_EVERY = 8  # steps between two looks at which rows have ended, on a device that would have to be waited for
BLOCK = 128  # tokens of the vocabulary that are summed before any is looked at
Within = tuple[int, int]  # where the first of some rows is in their batch, and how many rows that has
Choose = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # logits, rows, position -> tokens, log-probabilities


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How rollouts are drawn.

    top_k, top_p and temperature reshape the distribution in this order: temperature, top_k, top_p.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    max_new_tokens: int = target_length()
    temperature: float = 1.0
    top_k: int = 0  # 0 = the whole vocabulary
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_lengths(self)
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


@torch.no_grad()
def sample(
    model: Model,
    memory: Memory,
    settings: SamplingSettings,
    generator: torch.Generator,
    *,
    num_tokens: int | None = None,
    within: Within | None = None,
) -> Rollout:
    """Draw one output per source from the student's own distribution.

    Shapes: Memory of B sources -> Rollout with (B, T'), T' <= max_new_tokens. `num_tokens` limits the vocabulary
    to what the tokenizer can name. Of a batch that several processes share, `within` says which rows are here: they
    become what they would in the whole batch. Source: LLMR Eq. 1, y ~ q_theta; METHODS 1.7 for the log-probability of
    a reshaped distribution.
    """
    with whole(model):
        writer = Writer(model, memory, settings.max_new_tokens, num_tokens)
        return sample_from(writer, settings, generator, within=within)


@torch.no_grad()
def greedy(model: Model, memory: Memory, max_new_tokens: int, *, num_tokens: int | None = None) -> Rollout:
    """The most probable token at every step. Shapes as `sample`; `log_prob_BT` is that of the chosen tokens."""

    def choose(logits_RV: Tensor, rows_R: Tensor, position: int) -> tuple[Tensor, Tensor]:
        logits_RV = full_precision(logits_RV)
        best_R, token_R = logits_RV.max(dim=1)
        return token_R, best_R - logits_RV.logsumexp(dim=1)

    with whole(model):
        return _roll_out(Writer(model, memory, max_new_tokens, num_tokens), max_new_tokens, choose)


class Writer:
    """What a model would write next in each running row, a step at a time."""

    def __init__(self, model: Model, memory: Memory, max_length: int, num_tokens: int | None) -> None:
        self.decoder, self.head = step_decoder(model, memory, max_length), step_head(model, num_tokens)
        self.start_B = start_tokens(model, memory)
        self.ends, self.pad_id = model.config.eos_token_id, model.config.pad_token_id

    def logits(self, token_R: Tensor | None) -> Tensor:
        """Of the next token. Shapes: (R,) the tokens just chosen, or None at the start -> (R, V)."""
        return self.head.logits(self.decoder.step(self.start_B if token_R is None else token_R))

    def keep(self, rows_R: Tensor) -> None:
        """Drop all rows but these."""
        self.decoder.keep(rows_R)


def sample_from(
    writer: Writer,
    settings: SamplingSettings,
    generator: torch.Generator,
    *,
    look_every: int | None = None,
    within: Within | None = None,
) -> Rollout:
    """Draw one output per source from whatever the writer would write. Shapes as `sample`; looks as in `_roll_out`."""
    rows = len(writer.start_B)
    first, batch_rows = within or (0, rows)
    uniform_BT = torch.rand((batch_rows, settings.max_new_tokens), generator=generator, device=generator.device)
    uniform_BT = uniform_BT[first : first + rows].to(writer.start_B.device)

    def choose(logits_RV: Tensor, rows_R: Tensor, position: int) -> tuple[Tensor, Tensor]:
        return draw(logits_RV, uniform_BT[rows_R, position], settings)

    return _roll_out(writer, settings.max_new_tokens, choose, look_every)


def draw(logits_RV: Tensor, uniform_R: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution at `uniform_R`.

    Shapes: (R, V), (R,) in [0, 1) -> (R,) tokens, (R,) log-probabilities under the reshaped, renormalised distribution.
    The sum runs over blocks of the vocabulary first, then inside the block where the number falls: two short cumulative
    sums in place of one over V, and one new (R, V) tensor in place of four. Of nan, some token comes out, and its
    log-probability is nan: whoever draws looks at those once, at the end (`check_distribution`).
    """
    logits_RC, ids_RC = reshape_logits(logits_RV, settings)
    largest_R1 = logits_RC.amax(dim=1, keepdim=True)
    weight_RC = exp_below(logits_RC, largest_R1)
    candidates = weight_RC.shape[1]
    whole, rest = divmod(candidates, BLOCK)
    sum_RN = weight_RC[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).sum(dim=2)
    if rest:
        sum_RN = torch.cat([sum_RN, weight_RC[:, -rest:].sum(dim=1, keepdim=True)], dim=1)
    cumulative_RN = sum_RN.cumsum(dim=1)
    total_R1 = cumulative_RN[:, -1:]
    block_R1, threshold_R1 = first_above(sum_RN, cumulative_RN, uniform_R[:, None].to(total_R1.dtype) * total_R1)
    threshold_R1 = threshold_R1 - (cumulative_RN.gather(1, block_R1) - sum_RN.gather(1, block_R1))
    column_RK = block_R1 * BLOCK + torch.arange(min(BLOCK, candidates), device=block_R1.device)
    inside_RK = weight_RC.gather(1, column_RK.clamp(max=candidates - 1)).masked_fill_(column_RK >= candidates, 0.0)
    offset_R1, _ = first_above(inside_RK, inside_RK.cumsum(dim=1), threshold_R1)
    column_R1 = column_RK.gather(1, offset_R1).clamp_(max=candidates - 1)  # of nan, nothing is found
    log_q_R1 = logits_RC.gather(1, column_R1) - largest_R1 - total_R1.log()
    token_R1 = column_R1 if ids_RC is None else ids_RC.gather(1, column_R1)
    return token_R1.squeeze(1), log_q_R1.squeeze(1)


def first_above(weight_RN: Tensor, cumulative_RN: Tensor, threshold_RK: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry whose cumulative weight exceeds the threshold, and never one of weight 0, whatever was rounded.

    Shapes: (R, N) weights, one of each row above 0, (R, N) their sums, (R, K) -> (R, K) index, (R, K) the threshold as
    used. Rounding may lift a threshold to the last sum, push the rest of one below 0 on a block's border, or, in sums
    that a device forms in parallel, let them rise where the weight is 0.
    """
    rising_RN = cumulative_RN.masked_fill(weight_RN == 0, 0.0).cummax(dim=1).values
    last_R1 = rising_RN[:, -1:]
    threshold_RK = torch.minimum(threshold_RK.clamp(min=0), torch.nextafter(last_R1, torch.zeros_like(last_R1)))
    index_RK = torch.searchsorted(rising_RN, threshold_RK, right=True)
    return index_RK.clamp_(max=rising_RN.shape[1] - 1), threshold_RK


def reshape_logits(logits_RV: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor | None]:
    """Temperature, then the top_k candidates, then the smallest set of them with probability top_p.

    Shapes: (R, V) -> (R, C) logits and, when C candidates were picked out, their (R, C) token ids.
    """
    logits_RC, ids_RC = full_precision(logits_RV), None
    if settings.temperature != 1:
        logits_RC = logits_RC / settings.temperature
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


def _roll_out(writer: Writer, max_new_tokens: int, choose: Choose, look_every: int | None = None) -> Rollout:
    """Write until all rows have ended. Which have is looked at every so many steps; None: as is best on the device.

    A look waits for all that the device was given, and drops rows. Until then a row writes on after its end, and what
    it writes is not kept: the rollout is the same however often one looks.
    """
    num_sources, device = len(writer.start_B), writer.start_B.device
    look_every = look_every or (1 if device.type == "cpu" else LOOK_EVERY)
    tokens_BT = torch.full((num_sources, max_new_tokens), writer.pad_id, device=device)
    log_prob_BT = full_precision(writer.head.weight_VD.new_zeros((num_sources, max_new_tokens)))
    rows_R = torch.arange(num_sources, device=device)
    ended_R = torch.zeros_like(rows_R, dtype=torch.bool)
    token_R: Tensor | None = None
    for position in range(max_new_tokens):
        token_R, log_prob_R = choose(writer.logits(token_R), rows_R, position)
        tokens_BT[rows_R, position] = token_R
        log_prob_BT[rows_R, position] = log_prob_R.to(log_prob_BT.dtype)
        ended_R = ended_R | is_end(token_R, writer.ends)
        if (position + 1) % look_every:
            continue
        going_on = (~ended_R).nonzero().squeeze(1)
        if going_on.numel() == 0:
            break
        if going_on.numel() < rows_R.numel():
            writer.keep(going_on)
            rows_R, token_R, ended_R = rows_R[going_on], token_R[going_on], ended_R[going_on]
    mask_BT = mask_through_eos(tokens_BT, writer.ends)
    width = position + 1 if look_every == 1 else int(mask_BT.sum(dim=1).max())
    tokens_BT, mask_BT, log_prob_BT = (x_BT[:, :width] for x_BT in (tokens_BT, mask_BT, log_prob_BT))
    tokens_BT, log_prob_BT = tokens_BT.where(mask_BT, writer.pad_id), log_prob_BT.where(mask_BT, 0.0)
    check_distribution(log_prob_BT)
    return Rollout(tokens_BT, mask_BT, truncated_rows(tokens_BT, mask_BT, writer.ends), log_prob_BT)


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers; other numbers, or the same in another order, give another seed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
