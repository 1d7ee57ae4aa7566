"""GPT-Neo on windows: one prediction a window, at its last position, without paying for the others.

Shape legend: B windows, H context tokens, D model width, N heads, K head width (N*K = D), V vocabulary.

DaD-DAgger trains the last block and the final norm on exact windows: H tokens at positions 0 to H-1, one prediction at
H-1. Everything below the last block is frozen, so what it makes of a window is computed once (`trunk`). In the last
block only the last position is asked a question, and one query needs no keys and values of its own: with the normed
inputs x_j = g * n_j + b of the block's first layer norm,

    q_h . W_K x_j     = (g * W_K' q_h) . n_j + const(j)       the constant leaves the softmax
    sum_j a_j W_V x_j = W_V (g * sum_j a_j n_j + b)            as the a_j sum to 1

so two products of D by D for each of the H positions become two products of N by D. The stock forward pass is the
oracle in tests/kd_core/test_gpt_neo.py (values and gradients, float64). [ours]
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Model = Any  # transformers.GPTNeoForCausalLM; transformers ships no types
Trainable = Literal["all", "last_block"]


@dataclass(frozen=True)
class Trunk:
    """What the frozen part makes of windows: all that the last block needs to predict the token after each."""

    normed_BHD: Tensor  # the last block's input, normed, before the norm's scale and shift
    last_BD: Tensor  # the last position's input as it is, for the residual connection

    def rows(self, index: Tensor) -> "Trunk":
        """Some of the windows."""
        return Trunk(self.normed_BHD[index], self.last_BD[index])


def set_trainable(model: Model, what: Trainable) -> list[torch.nn.Parameter]:
    """Freeze all but `what`, and return what is trained.

    last_block: the last transformer block and the final layer norm, as DaD-DAgger does; the head, tied to the
    embedding, is then frozen too. Raises ValueError for another name.
    """
    if what not in ("all", "last_block"):
        raise ValueError(f"trainable must be all or last_block, got {what!r}")
    model.requires_grad_(what == "all")
    if what == "last_block":
        for module in (model.transformer.h[-1], model.transformer.ln_f):
            module.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trunk(model: Model, ids_BH: Tensor) -> Trunk:
    """The states below the last block. Shapes: (B, H) ids -> Trunk.

    Where these blocks are frozen, no gradient is recorded. Raises ValueError for a context longer than the model has
    positions.
    """
    x_BHD = embed(model, ids_BH)
    for block in model.transformer.h[:-1]:
        x_BHD = block_forward(block, x_BHD)
    return at_last_block(model, x_BHD)


def at_last_block(model: Model, x_BHD: Tensor) -> Trunk:
    """The last block's input as `last_hidden` wants it. Shapes: (B, H, D) -> Trunk."""
    norm = model.transformer.h[-1].ln_1
    return Trunk(F.layer_norm(x_BHD, norm.normalized_shape, eps=norm.eps), x_BHD[:, -1])


def embed(model: Model, ids_BH: Tensor) -> Tensor:
    """Tokens and positions. Shapes: (B, H) -> (B, H, D)."""
    length, most = ids_BH.shape[1], model.config.max_position_embeddings
    if length > most:
        raise ValueError(f"a context of {length} tokens is longer than the model's {most} positions")
    embedded: Tensor = model.transformer.wte(ids_BH) + model.transformer.wpe.weight[:length]
    return embedded


def block_forward(block: Any, x_BHD: Tensor) -> Tensor:
    """One transformer block at every position, without dropout. Shapes: (B, H, D) -> (B, H, D)."""
    attention = block.attn.attention
    normed = block.ln_1(x_BHD)
    q, k, v = (
        projection(normed).unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    allowed_HH = attention.bias[0, 0, : x_BHD.shape[1], : x_BHD.shape[1]]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed_HH, scale=1.0)  # GPT-Neo does not scale
    x_BHD = x_BHD + attention.out_proj(out.transpose(1, 2).flatten(2))
    after: Tensor = x_BHD + _feed_forward(block, x_BHD)
    return after


def last_hidden(model: Model, below: Trunk) -> Tensor:
    """The final state of the last position, for the head; differentiable in the last block and the final norm.

    Shapes: Trunk of B windows -> (B, D). Times `model.lm_head.weight.T` they are the logits of the next token.
    """
    block = model.transformer.h[-1]
    attention, norm = block.attn.attention, block.ln_1
    num_heads, head_dim = attention.num_heads, attention.head_dim
    query_BNK = attention.q_proj(below.normed_BHD[:, -1] * norm.weight + norm.bias).unflatten(1, (num_heads, head_dim))
    key_NKD, value_NKD = (
        projection.weight.unflatten(0, (num_heads, head_dim)) for projection in (attention.k_proj, attention.v_proj)
    )
    asked_BND = torch.einsum("bnk,nkd->bnd", query_BNK, key_NKD) * norm.weight
    allowed_H = attention.bias[0, 0, below.normed_BHD.shape[1] - 1, : below.normed_BHD.shape[1]]
    score_BNH = (asked_BND @ below.normed_BHD.transpose(1, 2)).masked_fill(~allowed_H, float("-inf"))
    seen_BND = score_BNH.softmax(dim=2) @ below.normed_BHD
    value_BNK = torch.einsum("bnd,nkd->bnk", seen_BND * norm.weight + norm.bias, value_NKD)
    x_BD = below.last_BD + attention.out_proj(value_BNK.flatten(1))
    final: Tensor = model.transformer.ln_f(x_BD + _feed_forward(block, x_BD))
    return final


def next_hidden(model: Model, ids_BH: Tensor) -> Tensor:
    """`last_hidden` of windows, from their tokens. Shapes: (B, H) -> (B, D)."""
    return last_hidden(model, trunk(model, ids_BH))


def _feed_forward(block: Any, x: Tensor) -> Tensor:
    mlp = block.mlp
    out: Tensor = mlp.c_proj(mlp.act(mlp.c_fc(block.ln_2(x))))
    return out
