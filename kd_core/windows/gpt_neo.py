"""GPT-Neo on windows: predictions at their last positions, without paying for the others.

Shape legend: B windows, L tokens of a window, P predictions, at its last positions, D model width, N heads, K head
width (N*K = D), V vocabulary. Exact windows have P = 1 and L = H context tokens; packed ones L = H + P - 1. A trunk's
`behind_BXD` holds all positions here: X = L.

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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.models.gpt_neo import Model, attend, finish, layer_norm, project, unpadded_states, visible
from kd_core.windows.trunk import Trunk


def trunk(model: Model, ids_BL: Tensor, predictions: int = 1) -> Trunk:
    """The states below the last block. Shapes: (B, L) ids, P -> Trunk.

    Where these blocks are frozen, no gradient is recorded. Raises ValueError for a context longer than the model has
    positions.
    """
    *below, last = model.transformer.h
    x_BLD, norm = unpadded_states(model, ids_BL, len(below)), last.ln_1
    return Trunk(F.layer_norm(x_BLD, norm.normalized_shape, eps=norm.eps), x_BLD[:, -predictions:])


def last_hidden(model: Model, below: Trunk) -> Tensor:
    """The final states of the predicting positions, for the head; differentiable in the last block and the final norm.

    Shapes: Trunk of B windows -> (B*P, D). Times `model.lm_head.weight.T` they are the logits of the next tokens.
    """
    block, (length, predictions) = model.transformer.h[-1], (below.behind_BXD.shape[1], below.last_BPD.shape[1])
    position_L = torch.arange(length, device=below.behind_BXD.device)
    seen_PL = visible(model, position_L[-predictions:], position_L)[block.attn.attention_type]
    product = _one_query if predictions == 1 else _some_queries
    final_BPD = finish(block, below.last_BPD, product(block, below, seen_PL))
    return layer_norm(final_BPD, model.transformer.ln_f).flatten(0, 1)


def _one_query(block: Any, below: Trunk, seen_1L: Tensor) -> Tensor:
    """What the last position attends to, without keys and values of any. Shapes: Trunk, (1, L) bool -> (B, 1, D)."""
    attention, norm = block.attn.attention, block.ln_1
    (query_BNK,) = project(block, below.behind_BXD[:, -1] * norm.weight + norm.bias, "q")
    key_NKD, value_NKD = (
        projection.weight.unflatten(0, query_BNK.shape[1:]) for projection in (attention.k_proj, attention.v_proj)
    )
    asked_BND = torch.einsum("bnk,nkd->bnd", query_BNK, key_NKD) * norm.weight
    score_BNL = (asked_BND @ below.behind_BXD.transpose(1, 2)).masked_fill(~seen_1L, float("-inf"))
    seen_BND = score_BNL.softmax(dim=2) @ below.behind_BXD
    value_BNK = torch.einsum("bnd,nkd->bnk", seen_BND * norm.weight + norm.bias, value_NKD)
    return value_BNK.flatten(1)[:, None]


def _some_queries(block: Any, below: Trunk, seen_PL: Tensor) -> Tensor:
    """What the last P positions attend to. Shapes: Trunk, (P, L) bool -> (B, P, D)."""
    normed_BLD = below.behind_BXD * block.ln_1.weight + block.ln_1.bias
    projected = *project(block, normed_BLD[:, -len(seen_PL) :], "q"), *project(block, normed_BLD, "kv")
    q, k, v = (x.transpose(1, 2) for x in projected)
    return attend(block, q, k, v, seen_PL)
