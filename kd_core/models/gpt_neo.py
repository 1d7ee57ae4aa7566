"""GPT-Neo's forward pass without padding, over the weights of a stock `GPTNeoForCausalLM`.

Shape legend: B rows, S prompt positions, T response positions, J keys (S + T), N real prompt tokens, M real response
tokens, D model width, H heads, K head width.

First the parts of a block, which gpt_neo_steps.py and kd_core/windows/gpt_neo.py are made of too; then the counterpart
of t5.py: `encode` reads the prompts, `decode` the responses after them.

What a response needs of its prompt is keys and values, so that is the memory, and the last block is not run on prompts
beyond them. A prompt's last token predicts the response's first, as a decoder's start token does: `encode` leaves it
out, and it is the first input of `decode`. Positions are counted in each row for itself, from its first token, so the
gap of padding between a prompt and its response is one in memory only. The stock forward pass on each row's
concatenated tokens is the oracle in tests/kd_core/models/test_gpt_neo.py (float64, values and gradients, 1e-10). [ours]
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.models.backends.pairs import Memory, check_fits, last_tokens
from kd_core.models.backends.prepacked import gelu_product
from kd_core.models.backends.recomputing import run_block
from kd_core.models.packing import Layout, additive_mask, dropout, unflatten

Model = Any  # transformers.GPTNeoForCausalLM; transformers ships no types


def embed(model: Model, ids: Tensor, position: Tensor) -> Tensor:
    """Tokens and where they stand. Shapes: (...), positions that broadcast to them -> (..., D)."""
    stack = model.transformer
    return dropout(F.embedding(ids, stack.wte.weight) + F.embedding(position, stack.wpe.weight), stack.drop)


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    """A layer norm module's function. Shapes: (..., D) -> (..., D)."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def project(block: Any, normed: Tensor, which: str) -> tuple[Tensor, ...]:
    """Queries, keys, values of normed inputs, as `which` names them ("qkv"). Shapes: (..., D) -> (..., H, K) each."""
    attention = block.attn.attention
    weights = (getattr(attention, f"{name}_proj").weight for name in which)
    heads = (attention.num_heads, attention.head_dim)
    return tuple(unflatten(F.linear(normed, weight), -1, heads) for weight in weights)


def visible(model: Model, query_T: Tensor, key_J: Tensor) -> dict[str, Tensor]:
    """Which keys each query sees, by a block's kind of attention (`block.attn.attention_type`).

    `global`: all up to the query's own position; `local`: the last `window_size` of these.
    Shapes: positions (..., T), (..., J) -> (..., T, J) bool each.
    """
    distance_TJ = query_T[..., :, None] - key_J[..., None, :]
    before_TJ = distance_TJ >= 0
    if not reaches_window(model, key_J.shape[-1]):
        return {"global": before_TJ, "local": before_TJ}
    return {"global": before_TJ, "local": before_TJ & (distance_TJ < model.config.window_size)}


def reaches_window(model: Model, num_keys: int) -> bool:
    """Whether local attention hides anything from the last of so many positions."""
    has_local = any(block.attn.attention_type == "local" for block in model.transformer.h)
    return has_local and num_keys > model.config.window_size


def attend(block: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention's product. Shapes: (B, H, T, K), (B, H, J, K) twice, a mask as SDPA takes it -> (B, T, D)."""
    attention = block.attn.attention
    drop = attention.attn_dropout.p if attention.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop, scale=1.0)  # GPT-Neo does not scale
    return out.transpose(1, 2).flatten(2)


def finish(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a block after its attention's product: output projection and feed-forward layer, both residual.

    Shapes: the block's input (..., D), (..., D) -> (..., D).
    """
    attention, mlp = block.attn.attention, block.mlp
    mixed = F.linear(attended, attention.out_proj.weight, attention.out_proj.bias)
    x = x + dropout(mixed, attention.resid_dropout)
    inner = _inner(block, layer_norm(x, block.ln_2))
    return x + dropout(F.linear(inner, mlp.c_proj.weight, mlp.c_proj.bias), mlp.dropout)


def _inner(block: Any, normed: Tensor) -> Tensor:
    """The feed-forward layer up to its activation. Shapes: (..., D) -> (..., 4 D)."""
    c_fc, is_tanh = block.mlp.c_fc, block.attn.attention.config.activation_function == "gelu_new"
    if is_tanh and (fused := gelu_product(normed, c_fc)) is not None:
        return fused
    inner = F.linear(normed, c_fc.weight, c_fc.bias)
    # the stock "gelu_new" is this formula in eight passes over memory
    return F.gelu(inner, approximate="tanh") if is_tanh else block.mlp.act(inner)


def unpadded_states(model: Model, ids_BL: Tensor, num_blocks: int) -> Tensor:
    """What the first `num_blocks` blocks make of rows without padding. Shapes: (B, L) -> (B, L, D).

    Raises ValueError for rows longer than the model has positions.
    """
    length, most = ids_BL.shape[1], model.config.max_position_embeddings
    if length > most:
        raise ValueError(f"a context of {length} tokens is longer than the model's {most} positions")
    position_L = torch.arange(length, device=ids_BL.device)
    x_BLD, seen = embed(model, ids_BL, position_L), visible(model, position_L, position_L)
    for block in model.transformer.h[:num_blocks]:
        q, k, v = (x.transpose(1, 2) for x in project(block, layer_norm(x_BLD, block.ln_1), "qkv"))
        x_BLD = finish(block, x_BLD, attend(block, q, k, v, seen[block.attn.attention_type]))
    return x_BLD


def encode(model: Model, ids_BS: Tensor, mask_BS: Tensor) -> Memory:
    """Keys and values of right-padded prompts.

    Shapes: (B, S) ids, (B, S) bool -> Memory, its rows as wide as attention wants them. Raises ValueError for a prompt
    without a token.
    """
    last_B, layout = last_tokens(ids_BS, mask_BS), Layout.of(mask_BS[:, 1:])
    position_BS = torch.arange(mask_BS.shape[1] - 1, device=ids_BS.device).expand(mask_BS.shape[0], -1)
    x_ND = embed(model, layout.pack(ids_BS[:, :-1]), layout.pack(position_BS))
    layout = layout.widened()
    # padding stands after a row's tokens here, where none of them looks anyway
    position_1S = torch.arange(layout.mask_BS.shape[1], device=ids_BS.device)[None]
    bias = _biases(model, position_1S, position_1S, x_ND.dtype)
    *blocks, last = model.transformer.h
    pairs: list[tuple[Tensor, Tensor]] = []
    for block in blocks:
        x_ND, k, v = run_block(model, _prompt_block, x_ND, block, layout, bias)
        pairs.append((k, v))
    k, v = _padded_heads(last, x_ND, layout, "kv")
    return Memory((*pairs, (k, v)), layout, last_B)


def decode(model: Model, memory: Memory, input_ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Layout]:
    """Teacher-forced states of responses, ready for `head_of`.

    Shapes: Memory, (B, T) inputs (the prompt's last token, then the response but its last), (B, T) bool -> (M, D) and
    the layout of its M tokens: `head_of(model).logits` makes of them what predicts the token after each input.
    Raises ValueError where a prompt and its response are longer than the model has positions.
    """
    layout, start_B1 = Layout.of(mask_BT), memory.length_B[:, None]
    check_fits(int((memory.length_B + mask_BT.sum(dim=1)).max()), model.config.max_position_embeddings)
    position_BT = start_B1 + torch.arange(mask_BT.shape[1], device=mask_BT.device)
    x_MD = embed(model, layout.pack(input_ids_BT), layout.pack(position_BT))
    wide = layout.widened()
    query_BT = start_B1 + torch.arange(wide.mask_BS.shape[1], device=mask_BT.device)
    bias = _biases(model, query_BT, torch.cat([memory.position_BS, query_BT], dim=1), x_MD.dtype)
    for block, pair in zip(model.transformer.h, memory.keys_values, strict=True):
        x_MD = run_block(model, _response_block, x_MD, block, wide, pair, bias)
    return layer_norm(x_MD, model.transformer.ln_f), layout


def _prompt_block(x_ND: Tensor, block: Any, layout: Layout, bias: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The block's output, and the keys and values that stay."""
    q, k, v = _padded_heads(block, x_ND, layout, "qkv")
    attended_BSD = attend(block, q, k, v, bias[block.attn.attention_type])
    return finish(block, x_ND, layout.pack(attended_BSD)), k, v


def _response_block(
    x_MD: Tensor, block: Any, layout: Layout, pair: tuple[Tensor, Tensor], bias: dict[str, Tensor]
) -> Tensor:
    q, k, v = _padded_heads(block, x_MD, layout, "qkv")
    k, v = (torch.cat([before, after], dim=2) for before, after in zip(pair, (k, v), strict=True))
    return finish(block, x_MD, layout.pack(attend(block, q, k, v, bias[block.attn.attention_type])))


def _padded_heads(block: Any, x_ND: Tensor, layout: Layout, which: str) -> tuple[Tensor, ...]:
    """A block's queries, keys and values, padded for attention. Shapes: (N, D) -> (B, H, S, K) each."""
    return tuple(layout.pad(x).transpose(1, 2) for x in project(block, layer_norm(x_ND, block.ln_1), which))


def _biases(model: Model, query_BT: Tensor, key_BJ: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """`visible`, as numbers that are added to the scores; every query must see one key, its own. (B, 1, T, J) each."""
    seen = visible(model, query_BT, key_BJ)
    return {kind: additive_mask(seen_BTJ, dtype)[:, None] for kind, seen_BTJ in seen.items()}
