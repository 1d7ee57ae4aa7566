"""One step of a GPT-Neo's response at a time, on preallocated caches.

Shape legend: B prompts, W beams a prompt (1 when sampling), R = B*W running rows, S prompt positions, T length limit,
J = S + T cached positions, D model width, H heads, K head width.

The counterpart of t5_steps.py: query, key and value come from one matrix product, the cache is written in
place, and rows that have ended are dropped (`keep`). A row's prompt stands in its first S places, padded to the
longest, and its response from place S on; where no row is padded and no window ends, attention needs no mask at all.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.models.backends.pairs import FAR, Memory, check_fits
from kd_core.models.gpt_neo import (
    Model,
    attend,
    embed,
    finish,
    layer_norm,
    reaches_window,
    visible,
)
from kd_core.models.packing import rows_of


@dataclass
class _LayerCache:
    qkv_weight: Tensor  # (3*D, D)
    key_RHJK: Tensor
    value_RHJK: Tensor


class StepDecoder:
    """State of R running rows; `step` feeds one token to each and returns its hidden state for the LM head.

    Raises ValueError where the longest prompt leaves less room than the length limit.
    """

    def __init__(self, model: Model, memory: Memory, max_length: int, num_beams: int = 1) -> None:
        self.model, self.num_beams, self.length = model, num_beams, 0
        self.prompt_length = int(memory.length_B.max())
        check_fits(self.prompt_length + max_length, model.config.max_position_embeddings)
        self._start_R = memory.length_B.repeat_interleave(num_beams)
        places_J = torch.arange(self.prompt_length + max_length, device=memory.last_B.device)
        gap_R1 = self.prompt_length - self._start_R[:, None]
        # padding lies between a row's prompt and its response, and no position is counted there
        is_gap_RJ = (places_J >= self._start_R[:, None]) & (places_J < self.prompt_length)
        response_RJ = torch.where(places_J < self.prompt_length, places_J, places_J - gap_R1)
        self._position_RJ = response_RJ.masked_fill(is_gap_RJ, FAR)
        self._padded = bool((gap_R1 > 0).any())
        self._caches = [
            self._layer_cache(block, key, value, max_length)
            for block, (key, value) in zip(model.transformer.h, memory.keys_values, strict=True)
        ]

    def _layer_cache(self, block: Any, key: Tensor, value: Tensor, max_length: int) -> _LayerCache:
        attention = block.attn.attention
        qkv_weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        key, value = (
            F.pad(x[:, :, : self.prompt_length], (0, 0, 0, max_length)).repeat_interleave(self.num_beams, dim=0)
            for x in (key, value)
        )
        return _LayerCache(qkv_weight, key, value)

    def step(self, tokens_R: Tensor) -> Tensor:
        """Shapes: (R,) the tokens just chosen (the prompt's last first) -> (R, D) hidden states for `head_of`."""
        stack, masks = self.model.transformer, self._masks(self.prompt_length + self.length + 1)
        x_RD = embed(self.model, tokens_R, self._start_R + self.length)
        for block, cache in zip(stack.h, self._caches, strict=True):
            x_RD = finish(block, x_RD, self._attention(block, x_RD, cache, masks.get(block.attn.attention_type)))
        self.length += 1
        return layer_norm(x_RD, stack.ln_f)

    def _masks(self, end: int) -> dict[str, Tensor]:
        """What each kind of attention sees of the first `end` places, (R, 1, 1, end) bool; no mask where it is all."""
        hides = {"global": self._padded, "local": self._padded or reaches_window(self.model, end)}
        if not any(hides.values()):
            return {}
        seen = visible(self.model, (self._start_R + self.length)[:, None], self._position_RJ[:, :end])
        return {kind: seen_R1J[:, None] for kind, seen_R1J in seen.items() if hides[kind]}

    def _attention(self, block: Any, x_RD: Tensor, cache: _LayerCache, mask: Tensor | None) -> Tensor:
        attention, place = block.attn.attention, self.prompt_length + self.length
        qkv = F.linear(layer_norm(x_RD, block.ln_1), cache.qkv_weight)
        q_RHK, k_RHK, v_RHK = qkv.unflatten(1, (3, attention.num_heads, attention.head_dim)).unbind(1)
        cache.key_RHJK[:, :, place] = k_RHK
        cache.value_RHJK[:, :, place] = v_RHK
        key, value = (c[:, :, : place + 1] for c in (cache.key_RHJK, cache.value_RHJK))
        return attend(block, q_RHK[:, :, None], key, value, mask).squeeze(1)

    def reorder(self, rows_R: Tensor) -> None:
        """Row r goes on from old row `rows_R[r]`, which must have the same prompt: beam search's step."""
        written = slice(self.prompt_length, self.prompt_length + self.length)
        for cache in self._caches:
            for tensor in (cache.key_RHJK, cache.value_RHJK):
                tensor[:, :, written] = tensor[:, :, written].index_select(0, rows_R)

    def keep(self, sources: Tensor) -> None:
        """Drop finished prompts. Shapes: (B',) indices of the prompts that go on."""
        rows = rows_of(sources, self.num_beams)
        for cache in self._caches:
            cache.key_RHJK = cache.key_RHJK.index_select(0, rows)
            cache.value_RHJK = cache.value_RHJK.index_select(0, rows)
        self._start_R, self._position_RJ = (x.index_select(0, rows) for x in (self._start_R, self._position_RJ))
