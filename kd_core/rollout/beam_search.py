"""Beam search over a step decoder: the teacher's outputs for SeqKD.

Shape legend: B sources still searching, K beams, T length limit, V vocabulary.

Follows stock `generate(num_beams=K, early_stopping=False)` hypothesis by hypothesis (the tests compare both), but
keeps one copy of the cross-attention keys per source and drops a source as soon as it is decided.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.lengths import check_lengths, target_length
from kd_core.models.policy import Memory, Model, start_tokens, step_decoder, step_head
from kd_core.rollout.responses import Ends, check_distribution, is_end


@dataclass(frozen=True, kw_only=True)
class BeamSettings:
    """How the teacher decodes. Defaults: 4 beams and no repeated bigram, as in the paper's code."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    num_beams: int = 4
    max_new_tokens: int = target_length()
    no_repeat_ngram_size: int = 2  # 0 = off
    length_penalty: float = 1.0  # score = log-probability / length ** length_penalty

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, got {self.num_beams}")
        check_lengths(self)
        if self.no_repeat_ngram_size < 0:
            raise ValueError(f"no_repeat_ngram_size must be 0 (off) or more, got {self.no_repeat_ngram_size}")


@dataclass(frozen=True)
class Hypotheses:
    """The best finished hypothesis of each source. `log_prob_B` is its sum of token log-probabilities, in nats."""

    tokens_BT: Tensor
    log_prob_B: Tensor


@dataclass
class _Beams:
    """Running and finished hypotheses of the sources still searching. Token rows start with the start token."""

    source_B: Tensor
    running_BKT: Tensor
    running_score_BK: Tensor
    finished_BKT: Tensor
    finished_score_BK: Tensor  # length-normalised; -inf where there is none yet
    finished_log_prob_BK: Tensor

    def keep(self, index: Tensor) -> None:
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.index_select(0, index))


@torch.no_grad()
def beam_search(model: Model, memory: Memory, settings: BeamSettings, *, num_tokens: int | None = None) -> Hypotheses:
    """The most probable output per source that beam search finds.

    Shapes: Memory of B sources -> (B, max_new_tokens) padded after the end, (B,). Source: Kim and Rush 2016, as
    LLMR section 3 uses it.
    """
    num_sources, num_beams, limit = memory.layout.mask_BS.shape[0], settings.num_beams, settings.max_new_tokens
    ends, pad_id, device = model.config.eos_token_id, model.config.pad_token_id, memory.layout.mask_BS.device
    head = step_head(model, num_tokens)
    out_BT = torch.full((num_sources, limit), pad_id, device=device)
    out_log_prob_B = torch.zeros(num_sources, device=device)
    beams = _start(start_tokens(model, memory), num_beams, limit, pad_id)
    decoder = step_decoder(model, memory, limit, num_beams)
    for position in range(limit):
        last_R = beams.running_BKT[:, :, position].flatten()
        log_q_RV = F.log_softmax(head.logits(decoder.step(last_R)).float(), dim=1)
        _ban_repeats(log_q_RV, beams.running_BKT[:, :, : position + 1].flatten(0, 1), settings.no_repeat_ngram_size)
        parents_R = _advance(beams, log_q_RV.unflatten(0, (-1, num_beams)), position, ends, settings)
        decoder.reorder(parents_R)
        decided_B = _decided(beams, position + 1, settings) | (position + 1 == limit)
        if decided_B.any():
            done = decided_B.nonzero().squeeze(1)
            rows, best_B = beams.source_B[done], beams.finished_score_BK[done].argmax(dim=1)
            out_BT[rows] = beams.finished_BKT[done, best_B, 1:]
            out_log_prob_B[rows] = beams.finished_log_prob_BK[done, best_B]
            going_on = (~decided_B).nonzero().squeeze(1)
            if going_on.numel() == 0:
                break
            beams.keep(going_on)
            decoder.keep(going_on)
    check_distribution(out_log_prob_B)
    return Hypotheses(out_BT, out_log_prob_B)


def _start(start_B: Tensor, num_beams: int, limit: int, pad_id: int) -> _Beams:
    shape, device = (start_B.shape[0], num_beams), start_B.device
    tokens_BKT = torch.full((*shape, limit + 1), pad_id, device=device)
    tokens_BKT[:, :, 0] = start_B[:, None]
    score_BK = torch.full(shape, float("-inf"), device=device)
    running_BK = torch.full(shape, -1e9, device=device)
    running_BK[:, 0] = 0.0  # the beams are equal at first: only one may branch
    return _Beams(
        torch.arange(shape[0], device=device), tokens_BKT, running_BK, tokens_BKT.clone(), score_BK, score_BK.clone()
    )


def _advance(beams: _Beams, log_q_BKV: Tensor, position: int, ends: Ends, settings: BeamSettings) -> Tensor:
    """Extend every beam by one token, move ended ones to `finished`; return each new beam's parent row."""
    num_sources, num_beams, vocab_size = log_q_BKV.shape
    total_BKV = log_q_BKV + beams.running_score_BK[:, :, None]
    num_candidates = num_beams * max(2, 1 + (1 if isinstance(ends, int) else len(ends)))  # K go on, whatever ends
    score_BC, flat_BC = total_BKV.flatten(1).topk(min(num_candidates, num_beams * vocab_size), dim=1)
    parent_BC, token_BC = flat_BC // vocab_size, flat_BC % vocab_size
    tokens_BCT = beams.running_BKT.gather(1, parent_BC[:, :, None].expand(-1, -1, beams.running_BKT.shape[2]))
    tokens_BCT[:, :, position + 1] = token_BC
    length, last = position + 1, position + 1 == settings.max_new_tokens
    ended_BC = is_end(token_BC, ends) | last  # at the limit, what runs is cut off and counts as it is
    _finish(beams, tokens_BCT, score_BC, ended_BC, length, settings)

    going_BC = score_BC.masked_fill(ended_BC, -1e9)
    beams.running_score_BK, pick_BK = going_BC.topk(num_beams, dim=1)
    beams.running_BKT = tokens_BCT.gather(1, pick_BK[:, :, None].expand(-1, -1, tokens_BCT.shape[2]))
    parent_BK = parent_BC.gather(1, pick_BK)
    offset_B1 = torch.arange(num_sources, device=parent_BK.device)[:, None] * num_beams
    return (parent_BK + offset_B1).flatten()


def _finish(
    beams: _Beams, tokens_BCT: Tensor, score_BC: Tensor, ended_BC: Tensor, length: int, settings: BeamSettings
) -> None:
    # Only an end among the best K candidates finishes: a worse one would not have stayed in the beam either.
    within_beam_C = torch.arange(ended_BC.shape[1], device=ended_BC.device) < settings.num_beams
    final_BC = (score_BC / length**settings.length_penalty).masked_fill(~(ended_BC & within_beam_C), float("-inf"))
    merged_score = torch.cat([beams.finished_score_BK, final_BC], dim=1)
    beams.finished_score_BK, pick_BK = merged_score.topk(settings.num_beams, dim=1)
    merged_tokens = torch.cat([beams.finished_BKT, tokens_BCT], dim=1)
    beams.finished_BKT = merged_tokens.gather(1, pick_BK[:, :, None].expand(-1, -1, merged_tokens.shape[2]))
    merged_log_prob = torch.cat([beams.finished_log_prob_BK, score_BC], dim=1)
    beams.finished_log_prob_BK = merged_log_prob.gather(1, pick_BK)


def _decided(beams: _Beams, length: int, settings: BeamSettings) -> Tensor:
    """True where K are finished and no running beam, at its present length, could still replace the worst of them."""
    attainable_B = beams.running_score_BK[:, 0] / length**settings.length_penalty
    worst_B = beams.finished_score_BK.amin(dim=1)
    decided_B: Tensor = worst_B >= attainable_B
    return decided_B


def _ban_repeats(log_q_RV: Tensor, tokens_RT: Tensor, size: int) -> None:
    """Set to -inf, in place, every token that would complete an n-gram the row already has. Shapes: (R, V), (R, t)."""
    length = tokens_RT.shape[1]
    if size == 0 or length < size:
        return
    grams_RGn = tokens_RT.unfold(1, size, 1)
    prefix_Rn = tokens_RT[:, length - size + 1 :]
    repeats_RG = (grams_RGn[:, :, :-1] == prefix_Rn[:, None]).all(dim=2)
    row, gram = repeats_RG.nonzero(as_tuple=True)
    log_q_RV[row, grams_RGn[row, gram, -1]] = float("-inf")
