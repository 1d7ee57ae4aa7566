"""Any decoder-only model of transformers over (prompt, response) pairs without padding, on its own stock modules.

Shape legend: B rows, S prompt positions, T response positions, J keys (S + T), N packed tokens, M real response tokens,
D model width, H query heads, G key heads, K head width.

Embeddings, norms, projections and feed-forward layers are the stock modules, run on the real tokens of a batch as one
row of N, positions counted in each row of its own; attention (`attention.py`) alone knows where rows end, and pads for
its product. What a response needs of its prompt is keys and values, after norms and rotation as the layer's attention
gets them, so that is the memory; sampling, scoring and learning share it, and the last layer is not run on prompts
beyond them. The stock forward pass on each row's tokens is the oracle of the tests. [ours]
"""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kd_core.models.backends.attention import EnoughRead, Places, Rows, own_attention
from kd_core.models.backends.pairs import Memory, check_fits, last_tokens, num_positions
from kd_core.models.backends.sharded import is_sharded
from kd_core.models.backends.varlen import Ends, Packed, key_places
from kd_core.models.packing import Layout

Model = Any  # a transformers …ForCausalLM; transformers ships no types


@dataclass
class _Prompts:
    """`Rows` of prompts, whose keys and values are kept."""

    layout: Layout
    last_layer: int
    places: Places
    keys_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def take(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: (1, H, N, K), (1, G, N, K) twice -> (B, H, S, K), (B, G, S, K) twice."""
        k, v = self._kept(layer, key, value)
        return _padded(query, self.layout), k, v

    def _kept(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        k, v = _padded(key, self.layout), _padded(value, self.layout)
        self.keys_values[layer] = k, v
        if layer == self.last_layer:
            raise EnoughRead
        return k, v

    def give(self, out: Tensor) -> Tensor:
        """Shapes: (B, H, S, K) -> (1, N, H, K)."""
        return _packed(out, self.layout)

    def packed(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Packed:
        """Shapes: (1, H, N, K), (1, G, N, K) twice."""
        self._kept(layer, key, value)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        ends = self._ends.on(q.device)
        return Packed(q, k, v, ends, ends)

    @cached_property
    def _ends(self) -> Ends:
        return Ends.of(self.layout.mask_BS)


@dataclass
class _Responses:
    """`Rows` of responses, which see their prompts' keys before their own."""

    layout: Layout
    memory: Memory
    places: Places

    def take(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: (1, H, M, K), (1, G, M, K) twice -> (B, H, T, K), (B, G, J, K) twice."""
        q, k, v = (_padded(x, self.layout) for x in (query, key, value))
        if not self.memory.keys_values:
            return q, k, v
        before_k, before_v = self.memory.keys_values[layer]
        return q, torch.cat([before_k, k], dim=2), torch.cat([before_v, v], dim=2)

    def give(self, out: Tensor) -> Tensor:
        """Shapes: (B, H, T, K) -> (1, M, H, K)."""
        return _packed(out, self.layout)

    def packed(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Packed:
        """Shapes: (1, H, M, K), (1, G, M, K) twice."""
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        queries, keys, place_X = self._ends
        if self.memory.keys_values:
            before = (x.transpose(1, 2).flatten(0, 1) for x in self.memory.keys_values[layer])
            place_X = place_X.to(q.device)
            k, v = (torch.cat(pair).index_select(0, place_X) for pair in zip(before, (k, v), strict=True))
        return Packed(q, k, v, queries.on(q.device), keys.on(q.device))

    @cached_property
    def _ends(self) -> tuple[Ends, Ends, Tensor]:
        """Of queries and of keys, and where the keys stand."""
        before_BS, own_BT = self.memory.layout.mask_BS, self.layout.mask_BS
        keys = Ends.of(torch.cat([before_BS, own_BT], dim=1))
        return Ends.of(own_BT), keys, key_places(before_BS, own_BT)


def encode(model: Model, ids_BS: Tensor, mask_BS: Tensor) -> Memory:
    """Keys and values of right-padded prompts.

    Shapes: (B, S) ids, (B, S) bool -> Memory, its rows as wide as attention wants them. Raises ValueError for a prompt
    without a token.
    """
    last_B, layout = last_tokens(ids_BS, mask_BS), Layout.of(mask_BS[:, 1:])
    if layout.index_N.numel() == 0 and not is_sharded(model):
        return Memory((), layout, last_B)
    if layout.index_N.numel() == 0:  # other ranks may have longer prompts, and every layer waits for all ranks
        as_if = encode(model, ids_BS[:, :1].expand(-1, 2), mask_BS[:, :1].expand(-1, 2))
        return Memory(as_if.keys_values, Layout.of(torch.zeros_like(as_if.layout.mask_BS)), last_B)
    position_S = torch.arange(mask_BS.shape[1] - 1, device=ids_BS.device)
    ids_N, position_N = layout.pack(ids_BS[:, :-1]), layout.pack(position_S.expand(mask_BS.shape[0], -1))
    layout = layout.widened()
    width = layout.mask_BS.shape[1]
    # padding stands after a row's tokens here, where none of them looks anyway
    position_1S = torch.arange(width, device=ids_BS.device)[None]
    last_layer = model.get_decoder().config.num_hidden_layers - 1
    rows = _Prompts(layout, last_layer, Places(position_1S, position_1S, width, needs_mask=False))
    with suppress(EnoughRead):
        run(model, ids_N[None], position_N[None], rows)
    return Memory(tuple(rows.keys_values[layer] for layer in range(last_layer + 1)), layout, last_B)


def decode(model: Model, memory: Memory, input_ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Layout]:
    """Teacher-forced states of responses, ready for the model's head.

    Shapes: Memory, (B, T) inputs (the prompt's last token, then the response but its last), (B, T) bool -> (M, D) and
    the layout of its M tokens. Raises ValueError where a prompt and its response are longer than the model has
    positions.
    """
    layout, start_B1 = Layout.of(mask_BT), memory.length_B[:, None]
    if layout.index_N.numel() == 0:  # stock layers want a token
        one_B1 = memory.last_B[:, None]
        states_BD, _ = decode(model, memory, one_B1, torch.ones_like(one_B1, dtype=torch.bool))
        return states_BD[:0], layout
    check_fits(int((memory.length_B + mask_BT.sum(dim=1)).max()), num_positions(model))
    position_BT = start_B1 + torch.arange(mask_BT.shape[1], device=mask_BT.device)
    wide = layout.widened()
    query_BT = start_B1 + torch.arange(wide.mask_BS.shape[1], device=mask_BT.device)
    key_BJ = torch.cat([memory.position_BS, query_BT], dim=1)
    rows = _Responses(wide, memory, Places(query_BT, key_BJ, key_BJ.shape[1]))
    states_1MD = run(model, layout.pack(input_ids_BT)[None], layout.pack(position_BT)[None], rows)
    return states_1MD[0], layout


def run(model: Model, ids: Tensor, position: Tensor, rows: Rows) -> Tensor:
    """The stock base model with `rows` as its attention. Shapes: (…) ids and positions, two-dimensional -> (…, D)."""
    base = model.get_decoder()
    with own_attention(base):
        # a mask that hides nothing keeps transformers from looking for rows in the positions itself
        out = base(
            input_ids=ids, position_ids=position, attention_mask=torch.ones_like(ids), use_cache=False, rows=rows
        )
    states: Tensor = out.last_hidden_state
    return states


def _padded(x_1HNK: Tensor, layout: Layout) -> Tensor:
    """(1, H, N, K) -> (B, H, S, K)."""
    return layout.on(x_1HNK.device).pad(x_1HNK[0].transpose(0, 1)).transpose(1, 2)


def _packed(x_BHSK: Tensor, layout: Layout) -> Tensor:
    """(B, H, S, K) -> (1, N, H, K)."""
    return layout.on(x_BHSK.device).pack(x_BHSK.transpose(1, 2))[None]
