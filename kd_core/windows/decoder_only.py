"""Any decoder-only model on windows: predictions at their last positions, on its own stock modules.

Shape legend: B windows, L tokens of a window, P predictions, at its last positions, X = L - P positions before them, D
model width, H query heads, G key heads, K head width.

The base model runs as it stands, with its own embeddings, rotations, masks and final norm: stopped before its last
block for the trunk, and for what follows with all other blocks passed over. Of the X positions the last block is only
asked for keys and values; attention's product, feed-forward layer and final norm are for the P alone. What is not on
transformers' attention interface (Falcon, Bloom) runs its whole last block on all L positions: slower, and right.
Whether a model can be cut so is tried on a few tokens before it is used. The stock forward pass is the oracle in
tests/kd_core/windows/test_families.py. [ours]
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from kd_core.models.backends.attention import Places
from kd_core.models.backends.decoder_only import run
from kd_core.models.backends.pairs import num_positions
from kd_core.models.backends.probe import close, probing, some_rows
from kd_core.models.policy import PACKED, backend_of
from kd_core.windows.trunk import Model, Trunk


class _EnoughRead(Exception):
    """What was wanted of the base model is there."""


@dataclass
class _Rows:
    """Windows for attention (see `attention.Rows`): all of one length, with what is known of the positions before."""

    places: Places
    behind: tuple[Tensor, Tensor] | None = None  # keys and values, (B, G, X, K)

    def take(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: (B, H, P, K), (B, G, P, K) twice -> (B, H, P, K), (B, G, L, K) twice."""
        if self.behind is None:
            return query, key, value
        return query, torch.cat([self.behind[0], key], dim=2), torch.cat([self.behind[1], value], dim=2)

    def give(self, out: Tensor) -> Tensor:
        """Shapes: (B, H, P, K) -> (B, P, H, K)."""
        return out.transpose(1, 2).contiguous()


class _Behind(_Rows):
    """The positions that predictions look back on: nothing is wanted of them but keys and values."""

    def take(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: (B, H, X, K), (B, G, X, K) twice. Raises _EnoughRead."""
        self.behind = key, value
        raise _EnoughRead


def trunk(model: Model, ids_BL: Tensor, predictions: int = 1) -> Trunk:
    """See last_block.py. Raises ValueError for a context longer than the model has positions."""
    length, most = ids_BL.shape[1], num_positions(model)
    if most is not None and length > most:
        raise ValueError(f"a context of {length} tokens is longer than the model's {most} positions")
    _check(model)
    return _trunk(model, ids_BL, predictions)


def last_hidden(model: Model, below: Trunk) -> Tensor:
    """See last_block.py."""
    _check(model)
    return _last_hidden(model, below)


def _trunk(model: Model, ids_BL: Tensor, predictions: int) -> Trunk:
    found: list[Tensor] = []

    def stop(_: object, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0].to(model.device))
        raise _EnoughRead

    hook = _blocks(model)[-1].register_forward_pre_hook(stop, prepend=True)
    try:
        with suppress(_EnoughRead):
            _run(model, ids_BL, _Rows(_places(0, ids_BL.shape[1], ids_BL.device)))
    finally:
        hook.remove()
    (states_BLD,) = found
    return Trunk(states_BLD[:, :-predictions], states_BLD[:, -predictions:])


def _last_hidden(model: Model, below: Trunk) -> Tensor:
    device, first = below.last_BPD.device, below.behind_BXD.shape[1]
    end = first + below.last_BPD.shape[1]
    if backend_of(model) is not PACKED:
        whole_BLD = torch.cat([below.behind_BXD, below.last_BPD], dim=1)
        return _run_last(model, whole_BLD, _Rows(_places(0, end, device)))[:, first:].flatten(0, 1)
    behind = _Behind(_places(0, first, device))
    if first:
        with suppress(_EnoughRead):
            _run_last(model, below.behind_BXD, behind)
    return _run_last(model, below.last_BPD, _Rows(_places(first, end, device), behind.behind)).flatten(0, 1)


def _places(first: int, end: int, device: torch.device) -> Places:
    """Queries from `first` on; keys from the window's start."""
    position_1L = torch.arange(end, device=device)[None]
    return Places(position_1L[:, first:], position_1L, end, needs_mask=0 < first < end - 1)


def _run(model: Model, ids_BP: Tensor, rows: _Rows) -> Tensor:
    """The base model's final states. Shapes: (B, P) -> (B, P, D)."""
    if backend_of(model) is PACKED:
        return run(model, ids_BP, rows.places.query_BT, rows)
    return _stock(model, ids_BP)


def _stock(model: Model, ids_BL: Tensor) -> Tensor:
    """The final states of whole windows, by the stock base model. Shapes: (B, L) -> (B, L, D)."""
    out = model.get_decoder()(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), use_cache=False)
    states_BLD: Tensor = out.last_hidden_state
    return states_BLD


def _run_last(model: Model, states_BPD: Tensor, rows: _Rows) -> Tensor:
    """The same from what enters the last block on, whatever the tokens are. Shapes: (B, P, D) -> (B, P, D)."""
    with _passed_over(_blocks(model), states_BPD):
        return _run(model, states_BPD.new_zeros(states_BPD.shape[:2], dtype=torch.long), rows)


@contextmanager
def _passed_over(blocks: Any, states_BPD: Tensor) -> Iterator[None]:
    """Within it, all blocks but the last do nothing, and the last is given these states."""
    *below, last = blocks
    hook = last.register_forward_pre_hook(lambda _, arguments: (states_BPD, *arguments[1:]), prepend=True)
    for block in below:
        block.forward = lambda *_, **__: states_BPD  # its [0] is a tensor too, where blocks return tuples
    try:
        yield
    finally:
        hook.remove()
        for block in below:
            del block.forward


def _blocks(model: Model) -> Any:
    """The base model's blocks. Raises ValueError where there is no such list."""
    base = model.get_decoder()
    for child in base.children():
        if isinstance(child, torch.nn.ModuleList) and len(child) == base.config.num_hidden_layers:
            return child
    raise ValueError(f"it has no list of {base.config.num_hidden_layers} blocks")


@torch.no_grad()
def from_last_block(model: Model) -> list[Any]:
    """The last block, and all modules that are called from there on: its own, and the final norm."""
    _check(model)
    called: list[Any] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))
        for module in model.get_decoder().modules()
    ]
    try:
        with probing(model):
            _stock(model, torch.zeros((1, 1), dtype=torch.long, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return called[called.index(_blocks(model)[-1]) :]


_CHECKED: WeakSet[Model] = WeakSet()  # models that can be cut


def _check(model: Model) -> None:
    """Raise ValueError unless two windows, cut before the last block, end in the stock model's states."""
    if model in _CHECKED:
        return
    backend_of(model)
    try:
        if model.config.is_encoder_decoder:
            raise ValueError("it has an encoder")
        with torch.no_grad(), probing(model):
            _compare(model)
    except ValueError as error:
        raise ValueError(
            f"a model of type {model.config.model_type!r} cannot be trained on windows here ({error})\n"
            "take a Llama, Qwen, Mistral, Gemma, GPT-Neo, …, or distil pairs of sources and outputs"
        ) from None
    _CHECKED.add(model)


def _compare(model: Model) -> None:
    length = min(8, num_positions(model) or 8)
    ids_BL, _ = some_rows((length, length), model.get_input_embeddings().num_embeddings, model.device)
    stock_BLD = _stock(model, ids_BL)
    for predictions in (1, 4):
        ours_MD = _last_hidden(model, _trunk(model, ids_BL, predictions))
        if not close(ours_MD, stock_BLD[:, -predictions:].flatten(0, 1)):
            raise ValueError("cut before its last block, it ends in other states")
