"""Decoder-only models that fit no single device, on several of one process: each layer lies on one, in their order.

Embedding, final norm and head, which are read directly and may be one tensor, are on the first device, with the first
layers: there ids go in and states come out. A layer is handed what it is called with where it lies; its keys and values
are made there, and stay. One device computes at a time: N have the memory of N and the speed of one. [ours]
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from kd_core.models.backends.sharded import layers_of

Model = Any  # transformers ships no types


@torch.no_grad()
def spread(model: Model, devices: Sequence[torch.device]) -> Model:
    """Put a frozen model on several devices, in place: its layers one after another, each device with equally much.

    Best from the CPU: then no device ever holds more than its part. Raises ValueError for a model without a list of
    layers.
    """
    layers = layers_of(model)
    sizes = [sum(x.nbytes for x in _tensors(layer)) for layer in layers]
    else_ = sum(x.nbytes for x in _tensors(model)) - sum(sizes)
    places = [devices[each] for each in shared_evenly(sizes, else_, len(devices))]
    place_of = {x: place for layer, place in zip(layers, places, strict=True) for x in _tensors(layer)}
    for x in list(_tensors(model)):
        x.data = x.data.to(place_of.get(x, devices[0]))
    for layer, place in zip(layers, places, strict=True):
        layer.register_forward_pre_hook(partial(_bring, place), with_kwargs=True)
    layers[-1].register_forward_hook(partial(_send, devices[0]))
    return model


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def shared_evenly(sizes: Sequence[int], before: int, num: int) -> list[int]:
    """On which of `num` devices each layer lies, where the first has so much `before` them: where its middle falls."""
    share, found = (before + sum(sizes)) / num, []
    for size in sizes:
        found.append(min(int((before + size / 2) / share), num - 1))
        before += size
    return found


def _bring(device: torch.device, _layer: nn.Module, args: Any, named: dict[str, Any]) -> Any:
    return _moved((args, named), device)


def _send(device: torch.device, _layer: nn.Module, _args: Any, output: Any) -> Any:
    return _moved(output, device)


def _moved(tree: Any, device: torch.device) -> Any:
    return tree_map_only(Tensor, lambda x: x.to(device), tree)
