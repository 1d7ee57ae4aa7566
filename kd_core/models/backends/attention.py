"""Attention's product in place of transformers' own, for stock modules that run on packed tokens.

Shape legend: B rows, T queries, J keys, H query heads, G key heads, K head width.

transformers calls the attention function that a model's config names, and passes on to it every keyword that the base
model was called with. `own_attention` names the one here; it is told by `rows` which tokens belong together. Masks it
makes itself: a mask function of the same name hands over, in place of a mask, the rule by which the model would make
it (causal, a sliding window, chunks), so that each layer keeps its own kind of attention. [ours]
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.models.backends.varlen import Packed, attend, serves
from kd_core.models.packing import additive_mask

NAME = "distill_rows"  # as transformers' configs call it
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # row, head, query's and key's position -> seen


@dataclass(frozen=True, eq=False)
class Kind:
    """Which keys a query sees, by where both stand. Layers of one kind share the object, for one pass."""

    rule: Rule
    reach: int | None  # how far back a query can look; among fewer keys the rule is `causal`

    def is_causal(self, num_keys: int) -> bool:
        """Whether, of so many positions, every query sees all up to its own."""
        from transformers.masking_utils import causal_mask_function

        return self.rule is causal_mask_function or (self.reach is not None and num_keys <= self.reach)


@dataclass
class Places:
    """Where queries and keys stand, and, for all layers of one pass, what can be seen."""

    query_BT: Tensor
    key_BJ: Tensor  # FAR where there is no key
    num_positions: int  # more than any that a token stands at
    needs_mask: bool = True  # False: attention that is causal needs none, or only its triangle
    seen_too_TJ: Tensor | None = None  # what else a key must be to be seen
    _biases: dict[tuple[Kind, torch.device], Tensor | None] = field(default_factory=dict)

    def bias(self, kind: Kind, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What is added to the scores of a kind of attention, (B, 1, T, J); None for all up to the query's own."""
        if (kind, device) not in self._biases:
            bias = self._bias(kind, dtype)
            self._biases[kind, device] = None if bias is None else bias.to(device)
        return self._biases[kind, device]

    def _bias(self, kind: Kind, dtype: torch.dtype) -> Tensor | None:
        if not self.needs_mask and kind.is_causal(self.num_positions):
            return None
        zero = self.query_BT.new_zeros(())
        seen = kind.rule(zero, zero, self.query_BT[:, None, :, None], self.key_BJ[:, None, None])
        return additive_mask(seen if self.seen_too_TJ is None else seen & self.seen_too_TJ, dtype)


class Rows(Protocol):
    """One pass over tokens: takes a layer's heads as the stock module has them, gives them back so."""

    @property
    def places(self) -> Places:
        """Where queries and keys stand."""

    def take(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows padded for attention, with all keys that they may see. Shapes: … -> (B, H, T, K), (B, G, J, K) twice."""

    def give(self, out: Tensor) -> Tensor:
        """Shapes: (B, H, T, K) -> as the stock module expects, heads last but one."""


@runtime_checkable
class PackedRows(Rows, Protocol):
    """Rows that can be had without padding too."""

    def packed(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Packed:
        """What `take` gives, packed: every query sees all its row's keys up to its own place."""


class EnoughRead(Exception):
    """Raised by `Rows.take` or `packed` where the last layer's keys are there: what follows is of no use to anybody."""


@contextmanager
def own_attention(base: Any) -> Iterator[None]:
    """Within it, the base model's layers ask the function here; its config says afterwards what it said before."""
    _register()
    config, before = base.config, base.config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def is_own_attention(base: Any) -> bool:
    """Whether this is within `own_attention`."""
    return bool(base.config._attn_implementation == NAME)


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _kind)


def _kind(*, mask_function: Rule, local_size: int | None = None, use_vmap: bool = False, **_: Any) -> Kind:
    """Stands where a model makes its mask; the sizes of the packed batch, in `_`, mean nothing here."""
    if use_vmap:
        raise NotImplementedError("a mask of the model's own making")
    return Kind(mask_function, local_size)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    *,
    rows: Rows,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    position_ids: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it. Raises NotImplementedError for what an attention asks for that is not known here."""
    unknown = [name for name, value in others.items() if isinstance(value, Tensor)]
    if unknown or not isinstance(attention_mask, Kind):
        raise NotImplementedError(f"attention with {unknown or 'a mask of its own'}")
    plain = softcap is None and not dropout and attention_mask.is_causal(rows.places.num_positions)
    if serves(query) and plain and isinstance(rows, PackedRows):
        return attend(rows.packed(module.layer_idx, query, key, value), scaling)[None], None
    q, k, v = rows.take(module.layer_idx, query, key, value)
    bias = rows.places.bias(attention_mask, q.dtype, q.device)
    if softcap is None:
        out = grouped(q, k, v, bias, scaling, dropout)
    else:
        out = softcapped(q, k, v, bias, scaling or q.shape[-1] ** -0.5, softcap, dropout)
    return rows.give(out), None


def grouped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scaling: float | None, dropout: float) -> Tensor:
    """softmax(q k' scaling + bias) v; a bias of None is the triangle, or, for one query, all keys.

    Where no triangle is wanted, the heads that share keys are queries over them: PyTorch, told of the groups
    (`enable_gqa`), takes six times as long on a CPU for a single query in bfloat16. Shapes as `softcapped`.
    """
    heads, length = q.shape[1:3]
    is_triangle, size = bias is None and length > 1, heads // k.shape[1]
    if size > 1 and not is_triangle:
        q = q.reshape(q.shape[0], k.shape[1], size * length, q.shape[3])
        bias = bias if bias is None or length == 1 else bias.repeat(1, 1, size, 1)
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=bias,
        dropout_p=dropout,
        is_causal=is_triangle,
        scale=scaling,
        enable_gqa=is_triangle and size > 1,
    )
    return out.reshape(out.shape[0], heads, length, out.shape[3])


def softcapped(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scaling: float, softcap: float, dropout: float
) -> Tensor:
    """softmax(c tanh(q k' scaling / c) + bias) v, the softmax in float32 or better.

    Shapes: (B, H, T, K), (B, G, J, K) twice, (B, 1, T, J) or None for the triangle -> (B, H, T, K). Source: Gemma 2.
    """
    grouped = (k.shape[1], q.shape[1] // k.shape[1])
    q_BGXK = q.unflatten(1, grouped).flatten(2, 3)  # X = the group's heads times T: keys are not repeated
    score = (softcap * (q_BGXK @ k.mT * scaling / softcap).tanh()).unflatten(2, (grouped[1], q.shape[2]))
    if bias is not None:
        score = score + bias[:, :, None]
    elif q.shape[2] > 1:
        future_TJ = torch.ones(score.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        score = score.masked_fill(future_TJ, torch.finfo(score.dtype).min)
    dtype = score.dtype if score.dtype == torch.float64 else torch.float32
    weight = score.softmax(dim=-1, dtype=dtype).to(v.dtype)
    weight = F.dropout(weight, dropout) if dropout else weight
    out: Tensor = (weight.flatten(2, 3) @ v).unflatten(2, (grouped[1], q.shape[2])).flatten(1, 2)
    return out
