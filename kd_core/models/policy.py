"""One interface to encoder–decoders and causal models, so that a method's loop is written once for both.

Shape legend: B rows, S source positions, T target positions, M real target tokens, R running rows, D model width.

`encode` reads sources (prompts) into a memory; `decode` gives the states that predict given targets (responses) after
them; a step decoder writes targets, a token a step; `head_weight` turns states into logits. Targets are read shifted
right, and what stands in front of them is `start_tokens`: a T5's decoder start token, a prompt's own last token.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from kd_core.lengths import require_length
from kd_core.models import gpt_neo, t5
from kd_core.models.gpt_neo_steps import StepDecoder as GPTNeoStepDecoder
from kd_core.models.packing import Layout
from kd_core.models.t5_steps import StepDecoder as T5StepDecoder

__all__ = [
    "Layout",
    "Memory",
    "Model",
    "StepDecoder",
    "decode",
    "encode",
    "head_weight",
    "start_tokens",
    "step_decoder",
]

Model = Any  # transformers.T5ForConditionalGeneration, its mT5 twin or GPTNeoForCausalLM; transformers ships no types
Memory = t5.Memory | gpt_neo.Memory


class StepDecoder(Protocol):
    """Writes R rows, a token a step; see kd_core/models/t5_steps.py and kd_core/models/gpt_neo_steps.py."""

    def step(self, tokens_R: Tensor) -> Tensor:
        """Shapes: (R,) the tokens just chosen -> (R, D) hidden states for `head_weight`."""

    def reorder(self, rows_R: Tensor) -> None:
        """Row r goes on from old row `rows_R[r]` of the same source."""

    def keep(self, sources: Tensor) -> None:
        """Drop all sources but these."""


def encode(model: Model, ids_BS: Tensor, mask_BS: Tensor) -> Memory:
    """Read right-padded sources. Shapes: (B, S) ids, (B, S) bool -> Memory of B rows."""
    if model.config.is_encoder_decoder:
        return t5.encode(model, ids_BS, mask_BS)
    return gpt_neo.encode(model, ids_BS, mask_BS)


def decode(model: Model, memory: Memory, input_ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Layout]:
    """Teacher-forced states of targets. Shapes: Memory, (B, T) shifted targets, (B, T) bool -> (M, D), their layout."""
    if isinstance(memory, t5.Memory):
        return t5.decode(model, memory, input_ids_BT, mask_BT)
    return gpt_neo.decode(model, memory, input_ids_BT, mask_BT)


def step_decoder(model: Model, memory: Memory, max_length: int, num_beams: int = 1) -> StepDecoder:
    """What writes at most `max_length` tokens after each source, in `num_beams` rows a source."""
    require_length("max_new_tokens", max_length)
    if isinstance(memory, t5.Memory):
        return T5StepDecoder(model, memory, max_length, num_beams)
    return GPTNeoStepDecoder(model, memory, max_length, num_beams)


def head_weight(model: Model, num_tokens: int | None = None) -> Tensor:
    """The LM head's (V, D) matrix; with `num_tokens`, only the rows that the tokenizer can name.

    T5 pads 32,100 tokens to 32,128 rows. The padding rows are no words: they are left out of every softmax,
    maximum and sample.
    """
    weight_VD: Tensor = model.lm_head.weight
    return weight_VD if num_tokens is None else weight_VD[:num_tokens]


def start_tokens(model: Model, memory: Memory) -> Tensor:
    """(B,) what is read in place of the token before the first target."""
    if isinstance(memory, t5.Memory):
        mask_BS = memory.layout.mask_BS
        return torch.full((mask_BS.shape[0],), model.config.decoder_start_token_id, device=mask_BS.device)
    return memory.last_B


def shift_right(tokens_BT: Tensor, start: Tensor | int) -> Tensor:
    """Decoder inputs for targets: position t reads token t-1, position 0 reads the start token.

    Shapes: (B, T), (B,) or one for all -> (B, T). The last target is dropped, never wrapped around to the front.
    """
    start_B1 = start[:, None] if isinstance(start, Tensor) else tokens_BT.new_full((tokens_BT.shape[0], 1), start)
    return torch.cat([start_B1, tokens_BT[:, :-1]], dim=1)
