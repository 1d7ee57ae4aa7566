"""Teacher-mixed rollouts: every token is drawn from a mixture of the teacher's and the student's distributions.

Shape legend: B sources, T length limit, R rows still running, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.head import full_precision
from kd_core.models.policy import Memory, Model, head_of, start_tokens, step_decoder
from kd_core.rollout.outputs import Rollout, check_distribution, is_end, mask_through_eos, truncated_rows
from kd_core.rollout.sampling import SamplingSettings, draw


@torch.no_grad()
def sample_mixed(
    student: Model,
    memory: Memory,
    teacher: Model,
    teacher_memory: Memory,
    teacher_mix: float,
    settings: SamplingSettings,
    generator: torch.Generator,
    *,
    num_tokens: int | None = None,
) -> Rollout:
    """Draw one output per source from alpha p + (1 - alpha) q, alpha = teacher_mix.

    Shapes: two Memories of the same B sources -> Rollout with (B, T'), T' <= max_new_tokens; its log-probabilities are
    the mixture's (reshaped by temperature, top_k and top_p where these are set). Raises ValueError for a mixture that
    is none. Source: MiniLLM, teacher-mixed sampling. As in `sampling`, a row does not depend on its neighbours.
    """
    if not 0 < teacher_mix < 1:
        raise ValueError(f"teacher_mix must be in (0, 1) to be a mixture, got {teacher_mix}")
    num_sources, limit, device = memory.layout.mask_BS.shape[0], settings.max_new_tokens, memory.layout.mask_BS.device
    uniform_BT = torch.rand((num_sources, limit), generator=generator, device=generator.device).to(device)
    ends = student.config.eos_token_id
    pair = [
        _Writer(model, states, limit, num_tokens) for model, states in ((student, memory), (teacher, teacher_memory))
    ]
    tokens_BT = torch.full((num_sources, limit), student.config.pad_token_id, device=device)
    log_prob_BT = full_precision(pair[0].head.weight_VD.new_zeros((num_sources, limit)))
    rows_R = torch.arange(num_sources, device=device)
    read = [writer.start_B for writer in pair]  # the last token of its own prompt, if it is a causal model
    for position in range(limit):
        log_q_RV, log_p_RV = (writer.log_probs(token_R) for writer, token_R in zip(pair, read, strict=True))
        log_mixture_RV = torch.logaddexp(log_q_RV + math.log1p(-teacher_mix), log_p_RV + math.log(teacher_mix))
        token_R, log_prob_R = draw(log_mixture_RV, uniform_BT[rows_R, position], settings)
        tokens_BT[rows_R, position] = token_R
        log_prob_BT[rows_R, position] = log_prob_R.to(log_prob_BT.dtype)
        going_on = (~is_end(token_R, ends)).nonzero().squeeze(1)
        if going_on.numel() == 0:
            break
        if going_on.numel() < rows_R.numel():
            for writer in pair:
                writer.decoder.keep(going_on)
            rows_R, token_R = rows_R[going_on], token_R[going_on]
        read = [token_R, token_R]
    tokens_BT, log_prob_BT = tokens_BT[:, : position + 1], log_prob_BT[:, : position + 1]
    check_distribution(log_prob_BT)
    mask_BT = mask_through_eos(tokens_BT, ends)
    return Rollout(tokens_BT, mask_BT, log_prob_BT, truncated_rows(tokens_BT, mask_BT, ends))


class _Writer:
    """A model a step at a time, with its head."""

    def __init__(self, model: Model, memory: Memory, limit: int, num_tokens: int | None) -> None:
        self.decoder, self.head = step_decoder(model, memory, limit), head_of(model, num_tokens)
        self.start_B = start_tokens(model, memory)

    def log_probs(self, token_R: Tensor) -> Tensor:
        """Shapes: (R,) the tokens just chosen -> (R, V) log-probabilities of the next, in nats."""
        return F.log_softmax(full_precision(self.head.logits(self.decoder.step(token_R))), dim=1)
