"""One decoding step of a T5 at a time, on preallocated caches.

Shape legend: B sources, K beams a source (1 when sampling), R = B*K running rows, S source positions, T length limit,
D model width, H heads, E head width.

Stock `generate` spends most of a small model's step in bookkeeping: masks rebuilt, caches concatenated, three
projections where one will do. Here query, key and value come from one matrix product, cross-attention keys and values
are computed once per source (beams share them), the cache is written in place, and finished rows are dropped
(`keep`). Stock `generate` is the oracle in the tests.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.models.packing import rows_of
from kd_core.models.t5 import Memory, Model, feed_forward, key_mask, rms_norm, scale_for_head, split_heads


@dataclass
class _LayerCache:
    qkv_weight: Tensor  # (3*H*E, D)
    self_key_RHTE: Tensor
    self_value_RHTE: Tensor
    cross_key_BHSE: Tensor
    cross_value_BHSE: Tensor


class StepDecoder:
    """Decoder state of R rows; `step` feeds one token to each and returns its hidden state for the LM head."""

    def __init__(self, model: Model, memory: Memory, max_length: int, num_beams: int = 1) -> None:
        self.model, self.num_beams, self.length = model, num_beams, 0
        dtype, device = memory.hidden_ND.dtype, memory.hidden_ND.device
        attention = model.decoder.block[0].layer[0].SelfAttention
        bias_1HTT = attention.compute_bias(max_length, max_length, device=device).to(dtype)
        self._bias_1HTT = bias_1HTT
        self._memory_bias = key_mask(memory.layout.mask_BS, dtype)
        num_rows = memory.layout.mask_BS.shape[0] * num_beams
        shape = (num_rows, attention.n_heads, max_length, attention.key_value_proj_dim)
        self._caches = [self._layer_cache(block, memory, shape) for block in model.decoder.block]

    @staticmethod
    def _layer_cache(block: Any, memory: Memory, shape: tuple[int, ...]) -> _LayerCache:
        own, cross = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
        key, value = (
            split_heads(memory.layout.pad(F.linear(memory.hidden_ND, w.weight)), cross) for w in (cross.k, cross.v)
        )
        empty = key.new_empty(shape)
        qkv_weight = torch.cat([own.q.weight, own.k.weight, own.v.weight])
        return _LayerCache(qkv_weight, empty, torch.empty_like(empty), key.contiguous(), value.contiguous())

    def step(self, tokens_R: Tensor) -> Tensor:
        """Shapes: (R,) the tokens just chosen (the start token first) -> (R, D) hidden states for `head_of`."""
        model, position = self.model, self.length
        x_RD = F.embedding(tokens_R, model.decoder.embed_tokens.weight)
        bias = self._bias_1HTT[:, :, position : position + 1, : position + 1]
        for block, cache in zip(model.decoder.block, self._caches, strict=True):
            x_RD = self._self_attention(x_RD, block.layer[0], cache, bias)
            x_RD = self._cross_attention(x_RD, block.layer[1], cache)
            x_RD = feed_forward(x_RD, block.layer[2])
        self.length += 1
        return scale_for_head(model, rms_norm(x_RD, model.decoder.final_layer_norm))

    def _self_attention(self, x_RD: Tensor, layer: Any, cache: _LayerCache, bias: Tensor) -> Tensor:
        attention, position = layer.SelfAttention, self.length
        qkv = F.linear(rms_norm(x_RD, layer.layer_norm), cache.qkv_weight)
        q_RHE, k_RHE, v_RHE = qkv.unflatten(1, (3, attention.n_heads, attention.key_value_proj_dim)).unbind(1)
        cache.self_key_RHTE[:, :, position] = k_RHE
        cache.self_value_RHTE[:, :, position] = v_RHE
        key, value = (c[:, :, : position + 1] for c in (cache.self_key_RHTE, cache.self_value_RHTE))
        out = F.scaled_dot_product_attention(q_RHE[:, :, None], key, value, attn_mask=bias, scale=1.0)
        return x_RD + F.linear(out.flatten(1), attention.o.weight)

    def _cross_attention(self, x_RD: Tensor, layer: Any, cache: _LayerCache) -> Tensor:
        attention = layer.EncDecAttention
        q_RI = F.linear(rms_norm(x_RD, layer.layer_norm), attention.q.weight)
        q_BHKE = split_heads(q_RI.unflatten(0, (-1, self.num_beams)), attention)  # beams are queries over shared keys
        out_BHKE = F.scaled_dot_product_attention(
            q_BHKE, cache.cross_key_BHSE, cache.cross_value_BHSE, attn_mask=self._memory_bias, scale=1.0
        )
        return x_RD + F.linear(out_BHKE.transpose(1, 2).flatten(0, 1).flatten(1), attention.o.weight)

    def reorder(self, rows_R: Tensor) -> None:
        """Row r goes on from old row `rows_R[r]`, which must belong to the same source: beam search's step."""
        for cache in self._caches:
            for tensor in (cache.self_key_RHTE, cache.self_value_RHTE):
                tensor[:, :, : self.length] = tensor[:, :, : self.length].index_select(0, rows_R)

    def keep(self, sources: Tensor) -> None:
        """Drop finished sources. Shapes: (B',) indices of the sources that go on."""
        rows = rows_of(sources, self.num_beams)
        for cache in self._caches:
            cache.self_key_RHTE = cache.self_key_RHTE.index_select(0, rows)
            cache.self_value_RHTE = cache.self_value_RHTE.index_select(0, rows)
            cache.cross_key_BHSE = cache.cross_key_BHSE.index_select(0, sources)
            cache.cross_value_BHSE = cache.cross_value_BHSE.index_select(0, sources)
        self._memory_bias = self._memory_bias.index_select(0, sources)
