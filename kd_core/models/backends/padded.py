"""Any other language model of transformers by its stock forward pass on padded rows: slower, and right.

Shape legend: B rows, S source positions, T target positions, L positions of a source and its target, M real target
tokens, D model width, R running rows.

For what is not on transformers' attention interface, or makes positions of its own: Falcon, Bloom, BART, Pegasus,
Marian, mBART and whatever else agrees with itself (`probe.py`). Encoder–decoders share the encoder's states between
sampling, scoring and learning; a decoder-only model reads its prompt anew each time, on the left of its response, so
that nothing need be known of its cache. [ours]
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.models.backends.pairs import check_fits, last_tokens, num_positions
from kd_core.models.packing import Layout, rows_of

Model = Any  # a transformers …ForCausalLM or …ForConditionalGeneration; transformers ships no types


@dataclass(frozen=True)
class Memory:
    """Sources as they are, and, of an encoder–decoder, what its encoder made of them."""

    ids_BS: Tensor
    layout: Layout
    hidden_BSD: Tensor | None  # None: a decoder-only model

    @property
    def last_B(self) -> Tensor:
        """(B,) the last token of each source."""
        return last_tokens(self.ids_BS, self.layout.mask_BS)

    def detach(self) -> "Memory":
        """The same memory with no gradient, for sampling."""
        return Memory(self.ids_BS, self.layout, None if self.hidden_BSD is None else self.hidden_BSD.detach())

    def repeated(self, times: int) -> "Memory":
        """Each source `times` over, one after another."""
        hidden = None if self.hidden_BSD is None else self.hidden_BSD.repeat_interleave(times, dim=0)
        return Memory(self.ids_BS.repeat_interleave(times, dim=0), self.layout.repeated(times), hidden)


def encode(model: Model, ids_BS: Tensor, mask_BS: Tensor) -> Memory:
    """Right-padded sources. Shapes: (B, S) ids, (B, S) bool -> Memory.

    Raises ValueError for a decoder-only model's prompt without a token, and for sources longer than an encoder has
    positions.
    """
    if not model.config.is_encoder_decoder:
        last_tokens(ids_BS, mask_BS)
        return Memory(ids_BS, Layout.of(mask_BS), None)
    check_fits(mask_BS.shape[1], num_positions(model), "a source of {} tokens is")
    out = model.get_encoder()(input_ids=ids_BS, attention_mask=mask_BS.long())
    return Memory(ids_BS, Layout.of(mask_BS), out.last_hidden_state)


def decode(model: Model, memory: Memory, input_ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Layout]:
    """Teacher-forced states of targets, ready for the model's head.

    Shapes: Memory, (B, T) inputs, (B, T) bool -> (M, D) and the layout of its M tokens. Raises ValueError where a
    row is longer than the model has positions.
    """
    layout, decoder = Layout.of(mask_BT), model.get_decoder()
    if memory.hidden_BSD is not None:
        check_fits(mask_BT.shape[1], num_positions(model), "a target of {} tokens is")
        out = decoder(input_ids=input_ids_BT, **_of_source(memory), use_cache=False)
        return layout.pack(out.last_hidden_state), layout
    start_B1 = memory.layout.mask_BS.sum(dim=1, keepdim=True) - 1  # where the prompt's last token stands
    length_B1 = start_B1 + mask_BT.sum(dim=1, keepdim=True)
    check_fits(int(length_B1.max()), num_positions(model))
    place_BT = start_B1 + torch.arange(mask_BT.shape[1], device=mask_BT.device)
    ids_BL = F.pad(memory.ids_BS[:, :-1], (0, mask_BT.shape[1])).scatter(1, place_BT, input_ids_BT)
    mask_BL = torch.arange(ids_BL.shape[1], device=mask_BT.device) < length_B1
    hidden_BLD = decoder(input_ids=ids_BL, attention_mask=mask_BL.long(), use_cache=False).last_hidden_state
    return layout.pack(hidden_BLD.take_along_dim(place_BT[:, :, None], dim=1)), layout


class StepDecoder:
    """State of R running rows on the model's own cache; `step` feeds one token to each.

    Raises ValueError where the longest prompt leaves less room than the length limit.
    """

    def __init__(self, model: Model, memory: Memory, max_length: int, num_beams: int = 1) -> None:
        self.decoder, self.num_beams = model.get_decoder(), num_beams
        takes = inspect.signature(self.decoder.forward).parameters
        self._cache_name = "past_key_values" if "past_key_values" in takes else "cache_params"  # recurrent ones
        self._cache: Any = None
        rows = torch.arange(len(memory.ids_BS), device=memory.ids_BS.device).repeat_interleave(num_beams)
        if memory.hidden_BSD is not None:
            check_fits(max_length, num_positions(model), "a target of {} tokens is")
            self._more = {name: x.index_select(0, rows) for name, x in _of_source(memory).items()}
            return
        # prompts but their last tokens, on the right of their padding, as `generate` has them
        length_B = memory.layout.mask_BS.sum(dim=1) - 1
        longest = int(length_B.max())
        check_fits(longest + max_length, num_positions(model))
        place_BL = torch.arange(longest, device=rows.device) - (longest - length_B[:, None])
        ids_BL, mask_BL = memory.ids_BS.gather(1, place_BL.clamp(min=0)), (place_BL >= 0).long()
        self._more = {"attention_mask": mask_BL.index_select(0, rows)}
        if "position_ids" in takes:
            self._more["position_ids"] = place_BL.clamp(min=0).index_select(0, rows)
        if longest:
            self._run(ids_BL.index_select(0, rows))
        if "position_ids" in self._more:
            self._more["position_ids"] = length_B[rows, None]

    def _run(self, ids_RL: Tensor) -> Tensor:
        out = self.decoder(input_ids=ids_RL, use_cache=True, **{self._cache_name: self._cache}, **self._more)
        self._cache = out[self._cache_name]
        states_RLD: Tensor = out.last_hidden_state
        return states_RLD

    def step(self, tokens_R: Tensor) -> Tensor:
        """Shapes: (R,) the tokens just chosen -> (R, D) hidden states for the head."""
        if "attention_mask" in self._more:
            self._more["attention_mask"] = F.pad(self._more["attention_mask"], (0, 1), value=1)
        states_R1D = self._run(tokens_R[:, None])
        if "position_ids" in self._more:
            self._more["position_ids"] = self._more["position_ids"] + 1
        return states_R1D[:, 0]

    def reorder(self, rows_R: Tensor) -> None:
        """Row r goes on from old row `rows_R[r]`, which must be of the same source: beam search's step."""
        self._cache.reorder_cache(rows_R)

    def keep(self, sources: Tensor) -> None:
        """Drop finished sources. Shapes: (B',) indices of the sources that go on."""
        rows = rows_of(sources, self.num_beams)
        self._cache.reorder_cache(rows)  # takes any rows; not every cache can select
        self._more = {name: x.index_select(0, rows) for name, x in self._more.items()}


def _of_source(memory: Memory) -> dict[str, Tensor]:
    """What a decoder reads of its encoder."""
    assert memory.hidden_BSD is not None
    return {
        "encoder_hidden_states": memory.hidden_BSD,
        "encoder_attention_mask": memory.layout.mask_BS.long(),
    }
