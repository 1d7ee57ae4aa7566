"""GPT-Neo on windows: predictions at their last positions, without paying for the others.

Shape legend: B windows, L tokens of a window, P predictions, at its last positions, D model width, N heads, K head
width (N*K = D), V vocabulary. Exact windows have P = 1 and L = H context tokens; packed ones L = H + P - 1.

DaD-DAgger trains the last block and the final norm on exact windows: H tokens at positions 0 to H-1, one prediction at
H-1. Everything below the last block is frozen, so what it makes of a window is computed once (`trunk`). In the last
block only the last position is asked a question, and one query needs no keys and values of its own: with the normed
inputs x_j = g * n_j + b of the block's first layer norm,

    q_h . W_K x_j     = (g * W_K' q_h) . n_j + const(j)       the constant leaves the softmax
    sum_j a_j W_V x_j = W_V (g * sum_j a_j n_j + b)            as the a_j sum to 1

so two products of D by D for each of the H positions become two products of N by D. With P > 1 keys and values are
shared by P queries and computed as usual. The stock forward pass is the oracle in tests/kd_core/windows/test_gpt_neo.py
(values and gradients, float64). [ours]
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import NewGELUActivation

from kd_core.models.packing import unflatten

Model = Any  # transformers.GPTNeoForCausalLM; transformers ships no types
Trainable = Literal["all", "last_block"]


@dataclass(frozen=True)
class Trunk:
    """What the frozen part makes of windows: all that the last block needs for its predictions."""

    normed_BLD: Tensor  # the last block's input, normed, before the norm's scale and shift
    last_BPD: Tensor  # its input at the predicting positions as it is, for the residual connection

    def of(self, model: Model, index_B: Tensor) -> "Trunk":
        """Some of the windows. The model is not asked: it has answered."""
        return Trunk(self.normed_BLD[index_B], self.last_BPD[index_B])

    @staticmethod
    def cat(parts: "list[Trunk]") -> "Trunk":
        """Windows of one length, one after another."""
        return Trunk(torch.cat([each.normed_BLD for each in parts]), torch.cat([each.last_BPD for each in parts]))


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


def trunk(model: Model, ids_BL: Tensor, predictions: int = 1) -> Trunk:
    """The states below the last block. Shapes: (B, L) ids, P -> Trunk.

    Where these blocks are frozen, no gradient is recorded. Raises ValueError for a context longer than the model has
    positions.
    """
    x_BLD = embed(model, ids_BL)
    for block in model.transformer.h[:-1]:
        x_BLD = block_forward(block, x_BLD)
    norm = model.transformer.h[-1].ln_1
    return Trunk(F.layer_norm(x_BLD, norm.normalized_shape, eps=norm.eps), x_BLD[:, -predictions:])


def head_weight(model: Model, num_tokens: int | None = None) -> Tensor:
    """The head's (V, D) matrix; with `num_tokens`, only the rows that the tokenizer can name: padding is no word."""
    weight_VD: Tensor = model.lm_head.weight
    return weight_VD if num_tokens is None else weight_VD[:num_tokens]


def embed(model: Model, ids_BL: Tensor) -> Tensor:
    """Tokens and positions. Shapes: (B, L) -> (B, L, D)."""
    length, most = ids_BL.shape[1], model.config.max_position_embeddings
    if length > most:
        raise ValueError(f"a context of {length} tokens is longer than the model's {most} positions")
    embedded: Tensor = model.transformer.wte(ids_BL) + model.transformer.wpe.weight[:length]
    return embedded


def block_forward(block: Any, x_BLD: Tensor) -> Tensor:
    """One transformer block at every position, without dropout. Shapes: (B, L, D) -> (B, L, D)."""
    attention, length = block.attn.attention, x_BLD.shape[1]
    normed = block.ln_1(x_BLD)
    q, k, v = (_heads(projection(normed), attention) for projection in _projections(attention))
    allowed_LL = attention.bias[0, 0, :length, :length]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed_LL, scale=1.0)  # GPT-Neo does not scale
    x_BLD = x_BLD + attention.out_proj(out.transpose(1, 2).flatten(2))
    return x_BLD + _feed_forward(block, x_BLD)


def last_hidden(model: Model, below: Trunk) -> Tensor:
    """The final states of the predicting positions, for the head; differentiable in the last block and the final norm.

    Shapes: Trunk of B windows -> (B*P, D). Times `model.lm_head.weight.T` they are the logits of the next tokens.
    """
    block = model.transformer.h[-1]
    attended_BPD = _one_query(block, below) if below.last_BPD.shape[1] == 1 else _some_queries(block, below)
    x_BPD = below.last_BPD + block.attn.attention.out_proj(attended_BPD)
    final: Tensor = model.transformer.ln_f(x_BPD + _feed_forward(block, x_BPD))
    return final.flatten(0, 1)


def _one_query(block: Any, below: Trunk) -> Tensor:
    """What the last position attends to, without keys and values of any. Shapes: Trunk with P = 1 -> (B, 1, D)."""
    attention, norm = block.attn.attention, block.ln_1
    num_heads, head_dim, length = attention.num_heads, attention.head_dim, below.normed_BLD.shape[1]
    query_BNK = attention.q_proj(below.normed_BLD[:, -1] * norm.weight + norm.bias).unflatten(1, (num_heads, head_dim))
    key_NKD, value_NKD = (
        projection.weight.unflatten(0, (num_heads, head_dim)) for projection in (attention.k_proj, attention.v_proj)
    )
    asked_BND = torch.einsum("bnk,nkd->bnd", query_BNK, key_NKD) * norm.weight
    allowed_L = attention.bias[0, 0, length - 1, :length]
    score_BNL = (asked_BND @ below.normed_BLD.transpose(1, 2)).masked_fill(~allowed_L, float("-inf"))
    seen_BND = score_BNL.softmax(dim=2) @ below.normed_BLD
    value_BNK = torch.einsum("bnd,nkd->bnk", seen_BND * norm.weight + norm.bias, value_NKD)
    return value_BNK.flatten(1)[:, None]


def _some_queries(block: Any, below: Trunk) -> Tensor:
    """What the last P positions attend to. Shapes: Trunk -> (B, P, D)."""
    attention, norm = block.attn.attention, block.ln_1
    length, predictions = below.normed_BLD.shape[1], below.last_BPD.shape[1]
    normed_BLD = below.normed_BLD * norm.weight + norm.bias
    q_proj, k_proj, v_proj = _projections(attention)
    q = _heads(q_proj(normed_BLD[:, -predictions:]), attention)
    k, v = (_heads(projection(normed_BLD), attention) for projection in (k_proj, v_proj))
    allowed_PL = attention.bias[0, 0, length - predictions : length, :length]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed_PL, scale=1.0)
    return out.transpose(1, 2).flatten(2)


def next_hidden(model: Model, ids_BL: Tensor, predictions: int = 1) -> Tensor:
    """`last_hidden` of windows, from their tokens. Shapes: (B, L), P -> (B*P, D)."""
    return last_hidden(model, trunk(model, ids_BL, predictions))


def _projections(attention: Any) -> tuple[Any, Any, Any]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _heads(x_BLD: Tensor, attention: Any) -> Tensor:
    """(B, L, D) -> (B, N, L, K)."""
    return unflatten(x_BLD, 2, (attention.num_heads, attention.head_dim)).transpose(1, 2)


def _feed_forward(block: Any, x: Tensor) -> Tensor:
    """The stock layer; its GELU in one kernel where it is the tanh form, which transformers writes out in eight."""
    mlp = block.mlp
    inner = mlp.c_fc(block.ln_2(x))
    inner = F.gelu(inner, approximate="tanh") if isinstance(mlp.act, NewGELUActivation) else mlp.act(inner)
    out: Tensor = mlp.c_proj(inner)
    return out
