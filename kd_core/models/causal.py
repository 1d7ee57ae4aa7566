"""GPT-Neo over (prompt, response) pairs without padding, over the weights of a stock `GPTNeoForCausalLM`.

Shape legend: B rows, S prompt positions, T response positions, J keys (S + T), N real prompt tokens, M real response
tokens, D model width, H heads, K head width.

The counterpart of t5.py, function by function: `encode` reads the prompts, `decode` the responses after them.
What a response needs of its prompt is keys and values, so that is the memory, and the last block is not run on prompts
beyond them. A prompt's last token predicts the response's first, as a decoder's start token does: `encode` leaves it
out, and it is the first input of `decode`. Positions are counted in each row for itself, from its first token, so the
gap of padding between a prompt and its response is one in memory only. The stock forward pass on each row's
concatenated tokens is the oracle in tests/kd_core/models/test_causal.py (float64, values and gradients, 1e-10). [ours]
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.models.packing import Layout, dropout, unflatten

FAR = 2**30  # where padding stands: after every query, so that none looks at it

Model = Any  # transformers.GPTNeoForCausalLM; transformers ships no types


@dataclass(frozen=True)
class Memory:
    """What prompts leave for their responses: keys and values of all tokens but the last, and that last token."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]  # a pair of (B, H, S, K) for each block
    layout: Layout  # of the prompts without their last token
    last_B: Tensor

    @property
    def length_B(self) -> Tensor:
        """(B,) tokens before the last: the position at which it stands itself."""
        return self.layout.mask_BS.sum(dim=1)

    @property
    def position_BS(self) -> Tensor:
        """(B, S) where the keys stand."""
        position_S = torch.arange(self.layout.mask_BS.shape[1], device=self.last_B.device)
        return position_S.expand_as(self.layout.mask_BS).masked_fill(~self.layout.mask_BS, FAR)

    def detach(self) -> "Memory":
        """The same memory with no gradient, for sampling."""
        pairs = tuple((key.detach(), value.detach()) for key, value in self.keys_values)
        return Memory(pairs, self.layout, self.last_B)


def encode(model: Model, ids_BS: Tensor, mask_BS: Tensor) -> Memory:
    """Keys and values of right-padded prompts.

    Shapes: (B, S) ids, (B, S) bool -> Memory, its rows as wide as attention wants them. Raises ValueError for a prompt
    without a token.
    """
    length_B = mask_BS.sum(dim=1)
    if (length_B == 0).any():
        raise ValueError("a causal model needs at least one token of prompt in every row, got an empty prompt")
    last_B = ids_BS.gather(1, length_B[:, None] - 1).squeeze(1)
    layout = Layout.of(mask_BS[:, 1:])
    position_BS = torch.arange(mask_BS.shape[1] - 1, device=ids_BS.device).expand(mask_BS.shape[0], -1)
    x_ND = _embed(model, layout.pack(ids_BS[:, :-1]), layout.pack(position_BS))
    layout = layout.widened()
    # padding stands after a row's tokens here, where none of them looks anyway
    position_1S = torch.arange(layout.mask_BS.shape[1], device=ids_BS.device)[None]
    bias = AttentionBias.of(model, position_1S, position_1S, x_ND.dtype)
    *blocks, last = model.transformer.h
    pairs = []
    for block in blocks:
        q, k, v = _project(block, x_ND, layout, "qkv")
        pairs.append((k, v))
        x_ND = _attend(block, x_ND, q, k, v, bias.at(block), layout)
    k, v = _project(last, x_ND, layout, "kv")
    return Memory((*pairs, (k, v)), layout, last_B)


def decode(model: Model, memory: Memory, input_ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Layout]:
    """Teacher-forced states of responses, ready for `head_weight`.

    Shapes: Memory, (B, T) inputs (the prompt's last token, then the response but its last), (B, T) bool -> (M, D) and
    the layout of its M tokens. Times `head_weight(model).T` they are the logits for the token that follows each input.
    Raises ValueError where a prompt and its response are longer than the model has positions.
    """
    layout, start_B1 = Layout.of(mask_BT), memory.length_B[:, None]
    check_length(model, int((memory.length_B + mask_BT.sum(dim=1)).max()))
    position_BT = start_B1 + torch.arange(mask_BT.shape[1], device=mask_BT.device)
    x_MD = _embed(model, layout.pack(input_ids_BT), layout.pack(position_BT))
    wide = layout.widened()
    query_BT = start_B1 + torch.arange(wide.mask_BS.shape[1], device=mask_BT.device)
    bias = AttentionBias.of(model, query_BT, torch.cat([memory.position_BS, query_BT], dim=1), x_MD.dtype)
    for block, (key, value) in zip(model.transformer.h, memory.keys_values, strict=True):
        q, k, v = _project(block, x_MD, wide, "qkv")
        x_MD = _attend(block, x_MD, q, torch.cat([key, k], dim=2), torch.cat([value, v], dim=2), bias.at(block), wide)
    return layer_norm(x_MD, model.transformer.ln_f), layout


@dataclass(frozen=True)
class AttentionBias:
    """What attention adds to its scores: 0 where a query may look, the lowest number elsewhere; (B, 1, T, J) each."""

    everywhere: Tensor  # of the blocks with global attention: all positions up to the query's
    nearby: Tensor  # of those with local attention: the last `window_size` of them

    @classmethod
    def of(cls, model: Model, query_BT: Tensor, key_BJ: Tensor, dtype: torch.dtype) -> "AttentionBias":
        """From the positions of queries and keys. Every query must see one key: its own."""
        distance_BTJ = query_BT[:, :, None] - key_BJ[:, None]
        before_BTJ, lowest = distance_BTJ >= 0, torch.finfo(dtype).min

        def bias(seen_BTJ: Tensor) -> Tensor:
            return torch.zeros_like(seen_BTJ, dtype=dtype).masked_fill_(~seen_BTJ, lowest)[:, None]

        everywhere = bias(before_BTJ)
        if not reaches_window(model, key_BJ.shape[1]):
            return cls(everywhere, everywhere)
        return cls(everywhere, bias(before_BTJ & (distance_BTJ < model.config.window_size)))

    def at(self, block: Any) -> Tensor:
        """The one that this block's attention wants."""
        return self.nearby if is_local(block) else self.everywhere


def is_local(block: Any) -> bool:
    """Whether the block's attention looks at the last `window_size` positions alone."""
    return bool(block.attn.attention_type == "local")


def reaches_window(model: Model, num_keys: int) -> bool:
    """Whether local attention hides anything from the last of so many positions."""
    return num_keys > model.config.window_size and any(is_local(block) for block in model.transformer.h)


def check_length(model: Model, length: int) -> None:
    """Raise ValueError for more tokens than the model has positions."""
    most = model.config.max_position_embeddings
    if length > most:
        raise ValueError(
            f"a prompt and its response of {length} tokens together are longer than the model's {most} positions\n"
            "lower max_source_tokens, or the limit of what is written after it"
        )


def layer_norm(x_ND: Tensor, norm: Any) -> Tensor:
    """A layer norm module's function."""
    return F.layer_norm(x_ND, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def feed_forward(block: Any, x_ND: Tensor) -> Tensor:
    """The block's residual feed-forward layer. Shapes: (N, D) -> (N, D)."""
    mlp, config = block.mlp, block.attn.attention.config
    inner = F.linear(layer_norm(x_ND, block.ln_2), mlp.c_fc.weight, mlp.c_fc.bias)
    # the stock "gelu_new" is this formula in eight passes over memory
    inner = F.gelu(inner, approximate="tanh") if config.activation_function == "gelu_new" else mlp.act(inner)
    return x_ND + dropout(F.linear(inner, mlp.c_proj.weight, mlp.c_proj.bias), mlp.dropout)


def split_heads(x_BSD: Tensor, attention: Any) -> Tensor:
    """(B, S, D) -> (B, H, S, K)."""
    return unflatten(x_BSD, -1, (attention.num_heads, attention.head_dim)).transpose(1, 2)


def _embed(model: Model, ids_N: Tensor, position_N: Tensor) -> Tensor:
    stack = model.transformer
    return dropout(F.embedding(ids_N, stack.wte.weight) + F.embedding(position_N, stack.wpe.weight), stack.drop)


def _project(block: Any, x_ND: Tensor, layout: Layout, which: str) -> tuple[Tensor, ...]:
    """Queries, keys and values, as `which` names them, padded for attention. Shapes: (N, D) -> (B, H, S, K) each."""
    attention, normed = block.attn.attention, layer_norm(x_ND, block.ln_1)
    weights = (getattr(attention, f"{name}_proj").weight for name in which)
    return tuple(split_heads(layout.pad(F.linear(normed, weight)), attention) for weight in weights)


def _attend(block: Any, x_ND: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, layout: Layout) -> Tensor:
    """The rest of a block, from its queries, keys and values on. Shapes: (N, D), … -> (N, D)."""
    attention = block.attn.attention
    drop = attention.attn_dropout.p if attention.training else 0.0
    out_BHSK = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop, scale=1.0)  # GPT-Neo: unscaled
    out_ND = layout.pack(out_BHSK.transpose(1, 2).flatten(2))
    mixed_ND = F.linear(out_ND, attention.out_proj.weight, attention.out_proj.bias)
    return feed_forward(block, x_ND + dropout(mixed_ND, attention.resid_dropout))
