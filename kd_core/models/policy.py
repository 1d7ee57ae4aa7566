"""One interface to all language models, so that a method's loop is written once for them.

Shape legend: B rows, S source positions, T target positions, M real target tokens, R running rows, D model width.

`encode` reads sources (prompts) into a memory; `target_states` gives the states that predict given targets (responses)
after them; a step decoder writes targets, a token a step; the logits of states are `head_of(model).logits`. Targets are
read shifted right, and what stands in front of them is `start_tokens`: an encoder–decoder's start token, a prompt's
last.

What serves a model: our own T5 and GPT-Neo; any other decoder-only model on its stock modules, packed, where these are
on transformers' attention interface; whatever remains by its stock forward pass on padded rows, which is slower. A T5
or GPT-Neo with an adapter is among these.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kd_core.lengths import require_length
from kd_core.losses.head import Head
from kd_core.models import gpt_neo, gpt_neo_steps, t5, t5_steps
from kd_core.models.backends import decoder_only, decoder_only_steps, padded
from kd_core.models.backends.lora import has_adapter
from kd_core.models.backends.prepacked import prepacked_product
from kd_core.models.backends.probe import Backend, Logits, bare_head, probe
from kd_core.models.backends.remote import REMOTE, RemoteModel
from kd_core.models.packing import Layout
from kd_core.models.token_rows import TokenRows

Model = Any  # a transformers …ForCausalLM or …ForConditionalGeneration; transformers ships no types

T5 = Backend("t5", t5.encode, t5.decode, t5_steps.StepDecoder)
GPT_NEO = Backend("gpt_neo", gpt_neo.encode, gpt_neo.decode, gpt_neo_steps.StepDecoder)
PACKED = Backend("packed", decoder_only.encode, decoder_only.decode, decoder_only_steps.StepDecoder)
PADDED = Backend("padded", padded.encode, padded.decode, padded.StepDecoder)
OWN = {"t5": T5, "mt5": T5, "gpt_neo": GPT_NEO}  # written here: tested, not probed


class Memory(Protocol):
    """What sources leave for their targets; each backend has its own."""

    @property
    def layout(self) -> Layout:
        """One row for each source."""

    def detach(self) -> "Memory":
        """The same memory with no gradient, for sampling."""

    def repeated(self, times: int) -> "Memory":
        """Each source `times` over, one after another."""


class StepDecoder(Protocol):
    """Writes R rows, a token a step; each backend has its own."""

    def step(self, tokens_R: Tensor) -> Tensor:
        """Shapes: (R,) the tokens just chosen -> (R, D) hidden states, for `head_of(model).logits`."""

    def reorder(self, rows_R: Tensor) -> None:
        """Row r goes on from old row `rows_R[r]` of the same source."""

    def keep(self, sources: Tensor) -> None:
        """Drop all sources but these."""


@dataclass(frozen=True)
class _Served:
    """How a model is run, and what it does to its head's products."""

    backend: Backend
    logits: Logits


_SERVED: WeakKeyDictionary[Model, _Served] = WeakKeyDictionary()


def backend_of(model: Model) -> Backend:
    """What runs a model. Raises ValueError, in two lines, for one that nothing here can run."""
    return _served(model).backend


def _served(model: Model) -> _Served:
    if isinstance(model, RemoteModel):
        return _Served(REMOTE, Logits())
    own = OWN.get(model.config.model_type)
    if own is not None and not has_adapter(model):  # they read the base's weights, and would pass over an adapter
        return _Served(own, Logits())
    if model not in _SERVED:
        _SERVED[model] = _first_that_serves(model, candidates(model))
    return _SERVED[model]


def candidates(model: Model) -> Sequence[Backend]:
    """What may run a model that has no code of its own here, the fastest first; the model may be without weights."""
    on_interface = getattr(model.get_decoder(), "_supports_attention_backend", False)
    return [PACKED, PADDED] if on_interface and not model.config.is_encoder_decoder else [PADDED]


def _first_that_serves(model: Model, backends: Sequence[Backend]) -> _Served:
    problems = []
    for backend in backends:
        try:
            return _Served(backend, probe(model, backend))
        except ValueError as error:
            problems.append(f"{backend.name}: {error}")
    raise ValueError(
        f"a model of type {model.config.model_type!r} cannot be run here ({'; '.join(problems)})\n"
        "take one that writes from left to right and has a head over its vocabulary: Llama, Qwen, Gemma, T5, BART, …"
    )


def encode(model: Model, ids_BS: Tensor, mask_BS: Tensor) -> Memory:
    """Read right-padded sources. Shapes: (B, S) ids, (B, S) bool -> Memory of B rows."""
    memory: Memory = backend_of(model).encode(model, ids_BS, mask_BS)
    return memory


def decode(model: Model, memory: Memory, input_ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Layout]:
    """Teacher-forced states of targets. Shapes: Memory, (B, T) shifted targets, (B, T) bool -> (M, D), their layout."""
    return backend_of(model).decode(model, memory, input_ids_BT, mask_BT)


def padded_rows(model: Model, rows: TokenRows, index_B: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a data set, on the model's device. Shapes: (B,) row numbers -> (B, S) ids, (B, S) mask."""
    return rows.batch(index_B.cpu(), model.config.pad_token_id, model.device)


def encode_rows(model: Model, rows: TokenRows, index_B: Tensor, times: int = 1) -> Memory:
    """Read rows of a data set, each once. Shapes: (B,) row numbers -> Memory of B * times rows, equal ones together."""
    memory = encode(model, *padded_rows(model, rows, index_B))
    return memory if times == 1 else memory.repeated(times)


def target_states(model: Model, memory: Memory, tokens_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Layout]:
    """The states that predict each token of given targets. Shapes: Memory, (B, T), (B, T) -> (M, D), their layout."""
    return decode(model, memory, shift_right(tokens_BT, start_tokens(model, memory)), mask_BT)


def step_decoder(model: Model, memory: Memory, max_length: int, num_beams: int = 1) -> StepDecoder:
    """What writes at most `max_length` tokens after each source, in `num_beams` rows a source."""
    require_length("max_new_tokens", max_length)
    steps: StepDecoder = backend_of(model).step_decoder(model, memory, max_length, num_beams)
    return steps


def head_of(model: Model, num_tokens: int | None = None) -> Head:
    """The LM head as it is; with `num_tokens`, only the rows that the tokenizer can name.

    T5 pads 32,100 tokens to 32,128 rows. The padding rows are no words: they are left out of every softmax,
    maximum and sample.
    """
    logits = _served(model).logits
    return replace(bare_head(model), scale=logits.scale, softcap=logits.softcap).first(num_tokens)


def step_head(model: Model, num_tokens: int | None = None) -> Head:
    """`head_of` for the states of a step decoder: on a CPU its weights are laid out once for all steps.

    Not those of T5 and GPT-Neo: products that round differently would draw other rollouts than their stored runs hold.
    """
    head = head_of(model, num_tokens)
    return head if backend_of(model) in OWN.values() else laid_out(head)


def laid_out(head: Head) -> Head:
    """The same head, constant, with weights laid out once where a CPU multiplies faster so. It rounds differently."""
    return replace(head, product=prepacked_product(head.weight_VD, head.bias_V))


def start_tokens(model: Model, memory: Any) -> Tensor:
    """(B,) what is read in place of the token before the first target."""
    if model.config.is_encoder_decoder:
        mask_BS = memory.layout.mask_BS
        return torch.full((mask_BS.shape[0],), model.config.decoder_start_token_id, device=mask_BS.device)
    last_B: Tensor = memory.last_B
    return last_B


def shift_right(tokens_BT: Tensor, start: Tensor | int) -> Tensor:
    """Decoder inputs for targets: position t reads token t-1, position 0 reads the start token.

    Shapes: (B, T), (B,) or one for all -> (B, T). The last target is dropped, never wrapped around to the front.
    """
    start_B1 = start[:, None] if isinstance(start, Tensor) else tokens_BT.new_full((tokens_BT.shape[0], 1), start)
    return torch.cat([start_B1, tokens_BT[:, :-1]], dim=1)
