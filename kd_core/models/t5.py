"""The T5 family's forward pass without padding, over the weights of a stock `T5ForConditionalGeneration`.

Shape legend: B rows, S source positions, T target positions, N real source tokens, M real target tokens, D model width,
H heads, K head width, I = H*K.

Norms, projections and feed-forward layers see only the real tokens of a batch, packed to (N, D); rows are padded to
(B, S) for the attention product alone. On short dialogues more than half of a padded batch is padding, so this is
where the time goes. The stock forward pass is the oracle in tests/kd_core/models/test_t5.py (float64, 1e-10). Covers
T5, T5 v1.1, T0, Flan-T5, mT5 (gated or plain feed-forward, tied or separate head). Padded positions cannot leak: they
do not exist outside attention, and are masked in it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.models.backends.recomputing import run_block
from kd_core.models.packing import Layout, additive_mask, dropout, unflatten

Model = Any  # transformers.T5ForConditionalGeneration and its mT5 twin; transformers ships no types


@dataclass(frozen=True)
class Memory:
    """What the encoder leaves for the decoder: packed hidden states and where they stand."""

    hidden_ND: Tensor
    layout: Layout

    def detach(self) -> "Memory":
        """The same memory with no gradient, for sampling."""
        return Memory(self.hidden_ND.detach(), self.layout)

    def repeated(self, times: int) -> "Memory":
        """Each source `times` over, one after another."""
        layout = self.layout.repeated(times)
        return Memory(layout.pack(self.layout.pad(self.hidden_ND).repeat_interleave(times, dim=0)), layout)


def rms_norm(x_ND: Tensor, norm: Any) -> Tensor:
    """T5's layer norm: scale only, no mean, no bias; the variance in float32."""
    return F.rms_norm(x_ND, x_ND.shape[-1:], norm.weight, norm.variance_epsilon)


def feed_forward(x_ND: Tensor, layer: Any) -> Tensor:
    """One residual feed-forward layer, plain or gated. Shapes: (N, D) -> (N, D)."""
    dense, normed = layer.DenseReluDense, rms_norm(x_ND, layer.layer_norm)
    if hasattr(dense, "wi_0"):
        inner = dense.act(F.linear(normed, dense.wi_0.weight)) * F.linear(normed, dense.wi_1.weight)
    else:
        inner = dense.act(F.linear(normed, dense.wi.weight))
    inner = dropout(inner, dense.dropout).to(dense.wo.weight.dtype)  # wo stays float32 in half-precision checkpoints
    return x_ND + dropout(F.linear(inner, dense.wo.weight).to(x_ND.dtype), layer.dropout)


def key_mask(mask_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask over keys. Shapes: (B, S) bool -> (B, 1, 1, S)."""
    return additive_mask(mask_BS, dtype)[:, None, None, :]


def encode(model: Model, ids_BS: Tensor, mask_BS: Tensor) -> Memory:
    """Encoder hidden states of right-padded sources.

    Shapes: (B, S) ids, (B, S) bool -> Memory with (N, D), its layout as wide as attention wants it. Same numbers as
    `model.encoder` at the real tokens.
    """
    stack, layout = model.encoder, Layout.of(mask_BS)
    x_ND = dropout(F.embedding(layout.pack(ids_BS), stack.embed_tokens.weight), stack.dropout)
    layout = layout.widened()
    bias_BHSS = _position_bias(stack, layout.mask_BS.shape[1], x_ND) + key_mask(layout.mask_BS, x_ND.dtype)
    for block in stack.block:
        x_ND = run_block(model, _encoder_block, x_ND, block, layout, bias_BHSS)
    return Memory(dropout(rms_norm(x_ND, stack.final_layer_norm), stack.dropout), layout)


def decode(model: Model, memory: Memory, input_ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Layout]:
    """Teacher-forced decoder states, ready for `head_of`.

    Shapes: Memory, (B, T) decoder inputs (see `shift_right`), (B, T) bool -> (M, D) and the layout of its M
    tokens: `head_of(model).logits` makes of them what predicts the token after each input.
    """
    stack, layout = model.decoder, Layout.of(mask_BT)
    x_MD = dropout(F.embedding(layout.pack(input_ids_BT), stack.embed_tokens.weight), stack.dropout)
    wide = layout.widened()
    length = wide.mask_BS.shape[1]
    future_TT = torch.ones((length, length), dtype=torch.bool, device=x_MD.device).triu(1)
    bias_HTT = _position_bias(stack, length, x_MD).masked_fill(future_TT, torch.finfo(x_MD.dtype).min)
    memory_bias = key_mask(memory.layout.mask_BS, x_MD.dtype)
    for block in stack.block:
        x_MD = run_block(model, _decoder_block, x_MD, block, wide, bias_HTT, memory, memory_bias)
    return scale_for_head(model, dropout(rms_norm(x_MD, stack.final_layer_norm), stack.dropout)), layout


def scale_for_head(model: Model, hidden_MD: Tensor) -> Tensor:
    """Original T5 ties head and embedding and scales by D ** -0.5; v1.1 and T0 do neither, mT5 has no such field."""
    scaled = getattr(model.config, "scale_decoder_outputs", False)
    return hidden_MD * model.config.d_model**-0.5 if scaled else hidden_MD


def split_heads(x_BSI: Tensor, attention: Any) -> Tensor:
    """(B, S, I) -> (B, H, S, K)."""
    return unflatten(x_BSI, -1, (attention.n_heads, attention.key_value_proj_dim)).transpose(1, 2)


def _encoder_block(x_ND: Tensor, block: Any, layout: Layout, bias: Tensor) -> Tensor:
    return feed_forward(_self_attention(x_ND, block.layer[0], layout, bias), block.layer[1])


def _decoder_block(
    x_MD: Tensor, block: Any, layout: Layout, bias: Tensor, memory: Memory, memory_bias: Tensor
) -> Tensor:
    x_MD = _self_attention(x_MD, block.layer[0], layout, bias)
    x_MD = _cross_attention(x_MD, block.layer[1], layout, memory, memory_bias)
    return feed_forward(x_MD, block.layer[2])


def _self_attention(x_ND: Tensor, layer: Any, layout: Layout, bias: Tensor) -> Tensor:
    attention, normed = layer.SelfAttention, rms_norm(x_ND, layer.layer_norm)
    q, k, v = (
        split_heads(layout.pad(F.linear(normed, w.weight)), attention) for w in (attention.q, attention.k, attention.v)
    )
    return x_ND + dropout(_attend(q, k, v, bias, attention, layout), layer.dropout)


def _cross_attention(x_MD: Tensor, layer: Any, layout: Layout, memory: Memory, bias: Tensor) -> Tensor:
    attention = layer.EncDecAttention
    q = split_heads(layout.pad(F.linear(rms_norm(x_MD, layer.layer_norm), attention.q.weight)), attention)
    k, v = (
        split_heads(memory.layout.pad(F.linear(memory.hidden_ND, w.weight)), attention)
        for w in (attention.k, attention.v)
    )
    return x_MD + dropout(_attend(q, k, v, bias, attention, layout), layer.dropout)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, attention: Any, layout: Layout) -> Tensor:
    drop = attention.dropout if attention.training else 0.0
    out_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop, scale=1.0)
    return F.linear(layout.pack(out_BHTK.transpose(1, 2).flatten(2)), attention.o.weight)


def _position_bias(stack: Any, length: int, like: Tensor) -> Tensor:
    bias_1HTT: Tensor = stack.block[0].layer[0].SelfAttention.compute_bias(length, length, device=like.device)
    return bias_1HTT.to(like.dtype)
