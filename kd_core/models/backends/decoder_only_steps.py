"""One step of a decoder-only model's response at a time, on preallocated caches.

Shape legend: B prompts, W beams a prompt (1 when sampling), R = B*W running rows, S prompt positions, T length limit,
J = S + T*W cached places, H query heads, G key heads, K head width.

The counterpart of t5_steps.py, on stock modules as in decoder_only.py. The cache of a prompt holds the prompt's keys
once, padded to the longest, then those of its beams, a step after the other: at step t beam w writes place S + t*W + w.
So the beams are queries over the same keys, and a mask hides each other's; with one beam, where no row is padded and
no window ends, attention needs no mask at all. The cache is written in place. Where prompts are dropped (`keep`), the
last ones move into the places that became free, and nothing else is copied: so the order in here is not the caller's,
and `_slot_B` says where each of his prompts is. Weights are laid out once for all steps (`prepacked.py`).

By graphs (`graphs.py`, one beam alone), a step attends to places that are not written yet too: they stand after its
own, so that the model's mask hides them. Rows that were dropped are computed on until fewer make another shape.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.models.backends.attention import Places
from kd_core.models.backends.decoder_only import Model, run
from kd_core.models.backends.graphs import Graphs, Shape, rounded, writes_in_graphs
from kd_core.models.backends.pairs import Memory, check_fits, num_positions
from kd_core.models.backends.prepacked import prepacked_layers, standing_in
from kd_core.models.packing import unflatten


@dataclass
class _Static:
    """What graphs read and write: as many rows as there were at first, and none of it ever moves."""

    graphs: Graphs
    tokens_B: Tensor
    start_B: Tensor
    position_BJ: Tensor
    place_1: Tensor  # where this step's keys go
    caches: dict[int, tuple[Tensor, Tensor]]
    shape: Shape = (0, 0)  # of the step that is run, or captured

    def put(self, layer: int, key_BG1K: Tensor, value_BG1K: Tensor) -> tuple[Tensor, Tensor]:
        """Write a step's keys and values; returns all as far as the shape goes. Shapes: -> (B, G, J, K) twice."""
        rows, end = self.shape
        for cache, new in zip(self.caches[layer], (key_BG1K, value_BG1K), strict=True):
            cache[:rows].index_copy_(2, self.place_1, new.to(cache.dtype))
        key, value = self.caches[layer]
        return key[:rows, :, :end], value[:rows, :, :end]


class StepDecoder:
    """State of R running rows; `step` feeds one token to each and returns its hidden state for the LM head.

    Raises ValueError where the longest prompt leaves less room than the length limit. Itself the `Rows` of attention.
    """

    places: Places

    def __init__(self, model: Model, memory: Memory, max_length: int, num_beams: int = 1) -> None:
        self.model, self.num_beams, self.max_length, self.length = model, num_beams, max_length, 0
        self.prompt_length = int(memory.length_B.max())
        check_fits(self.prompt_length + max_length, num_positions(model))
        self._slot_B = torch.arange(len(memory.last_B), device=memory.last_B.device)
        self._products = prepacked_layers(model.get_decoder())
        self._start_B = memory.length_B
        step_X = torch.arange(max_length, device=memory.last_B.device).repeat_interleave(num_beams)
        self._position_BJ = torch.cat(
            [memory.position_BS[:, : self.prompt_length], self._start_B[:, None] + step_X], dim=1
        )
        self._is_padded = bool((self._start_B < self.prompt_length).any())
        beam_W = torch.arange(num_beams, device=memory.last_B.device)
        theirs_WX = beam_W.repeat(max_length) != beam_W[:, None]
        self._mine_WJ = ~F.pad(theirs_WX, (self.prompt_length, 0))
        self._caches = {
            layer: (self._cache(key[:, :, : self.prompt_length]), self._cache(value[:, :, : self.prompt_length]))
            for layer, (key, value) in enumerate(memory.keys_values)
        }
        self._static = self._buffers() if num_beams == 1 and writes_in_graphs(model) else None

    def _cache(self, prompt_BGSK: Tensor) -> Tensor:
        """The prompts' keys or values, with room for the responses'. Shapes: (B, G, S, K) -> (B, G, J, K)."""
        return F.pad(prompt_BGSK, (0, 0, 0, self.max_length * self.num_beams))

    @property
    def _end(self) -> int:
        """Places that are written so far."""
        return self.prompt_length + self.length * self.num_beams

    def step(self, tokens_R: Tensor) -> Tensor:
        """Shapes: (R,) the tokens just chosen (the prompt's last first) -> (R, D) hidden states for the head."""
        if self._static is not None:
            return self._step_by_graphs(self._static, tokens_R)
        tokens_BW = self._in_slots(tokens_R.unflatten(0, (-1, self.num_beams)))
        query_B1, end = self._start_B[:, None] + self.length, self._end + self.num_beams
        beams = self._mine_WJ[:, :end] if self.num_beams > 1 else None
        self.places = Places(
            query_B1,
            self._position_BJ[:, :end],
            self.prompt_length + self.length + 1,
            needs_mask=self._is_padded or beams is not None,
            seen_too_TJ=beams,
        )
        with standing_in(self._products):
            states_R1D = run(self.model, tokens_BW.view(-1, 1), query_B1.expand_as(tokens_BW).reshape(-1, 1), self)
        self.length += 1
        states_BWD = unflatten(states_R1D[:, 0], 0, tokens_BW.shape)
        return states_BWD.index_select(0, self._slot_B).flatten(0, 1)

    def _buffers(self) -> "_Static":
        return _Static(
            Graphs(),
            torch.zeros_like(self._slot_B),
            self._start_B,
            self._position_BJ,
            self._start_B.new_full((1,), self.prompt_length),
            dict(self._caches),
        )

    def _step_by_graphs(self, static: "_Static", tokens_B: Tensor) -> Tensor:
        static.tokens_B.index_copy_(0, self._slot_B, tokens_B)
        most = static.position_BJ.shape
        shape = rounded(len(tokens_B), most[0], self._end + 1, most[1])
        states_BD = static.graphs.run(self._run_static, shape, tokens_B.device)
        static.place_1.add_(1)
        self.length += 1
        return states_BD.index_select(0, self._slot_B)

    def _run_static(self, shape: Shape) -> Tensor:
        """A step over the first rows and places of the static buffers. Shapes: -> (rows, D), in the order in here."""
        rows, end = shape
        static = self._static
        assert static is not None  # who has graphs has buffers
        static.shape = shape
        query_B1 = static.start_B[:rows, None] + (static.place_1 - self.prompt_length)
        self.places = Places(query_B1, static.position_BJ[:rows, :end], end)
        with standing_in(self._products):
            return run(self.model, static.tokens_B[:rows, None], query_B1, self)[:, 0]

    def _in_slots(self, x_BX: Tensor) -> Tensor:
        """From the caller's order to the one in here. Shapes: (B, ...) -> (B, ...)."""
        return torch.empty_like(x_BX).index_copy_(0, self._slot_B, x_BX)

    def take(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: (R, H, 1, K), (R, G, 1, K) twice -> (B, H, W, K), (B, G, J, K) twice, J as far as written."""
        q, k, v = (x.unflatten(0, (-1, self.num_beams)).squeeze(3).transpose(1, 2) for x in (query, key, value))
        if layer not in self._caches:  # no prompt has more than one token: there is none that came from a memory
            self._caches[layer] = self._cache(k[:, :, :0]), self._cache(v[:, :, :0])
        if self._static is not None:
            self._static.caches.setdefault(layer, self._caches[layer])
            return q, *self._static.put(layer, k, v)
        start, end = self._end, self._end + self.num_beams
        for cache, new in zip(self._caches[layer], (k, v), strict=True):
            cache[:, :, start:end] = new
        keys, values = self._caches[layer]
        return q, keys[:, :, :end], values[:, :, :end]

    def give(self, out: Tensor) -> Tensor:
        """Shapes: (B, H, W, K) -> (R, 1, H, K)."""
        return out.transpose(1, 2).flatten(0, 1)[:, None]

    def reorder(self, rows_R: Tensor) -> None:
        """Row r goes on from old row `rows_R[r]`, which must have the same prompt: beam search's step."""
        parent = self._in_slots((rows_R % self.num_beams).view(-1, 1, 1, self.num_beams, 1))
        for pair in self._caches.values():
            for cache in pair:
                own = cache[:, :, self.prompt_length : self._end].unflatten(2, (self.length, self.num_beams))
                own.copy_(own.take_along_dim(parent.to(own.device), dim=3))

    def keep(self, sources: Tensor) -> None:
        """Drop finished prompts. Shapes: (B',) indices of the prompts that go on."""
        count, slot_B = len(sources), self._slot_B[sources]
        is_last_B = slot_B >= count
        taken = torch.zeros_like(self._start_B, dtype=torch.bool)[:count].index_fill_(0, slot_B[~is_last_B], True)
        origin, free = slot_B[is_last_B], (~taken).nonzero().squeeze(1)

        def kept(x: Tensor) -> Tensor:
            to, of = free.to(x.device), origin.to(x.device)
            return x.index_copy_(0, to, x.index_select(0, of))[:count]

        self._caches = {layer: (kept(key), kept(value)) for layer, (key, value) in self._caches.items()}
        self._start_B, self._position_BJ = kept(self._start_B), kept(self._position_BJ)
        self._slot_B = slot_B.masked_scatter(is_last_B, free)
