"""Decoder-only models that fit no single device: each rank holds its part of every layer's weights (FSDP2).

A layer's weights are gathered before it runs and let go after it; its gradients are summed over ranks, and each rank
keeps its part of them. Embedding, final norm and head are whole everywhere: they are read directly, not called, and
are little of a large model. All ranks have to run each layer equally often, forwards and backwards: each waits for the
others at every one. While text is written, a token a pass, all weights are gathered for as long as that takes
(`whole`); then ranks wait for nobody.

Source: Zhao et al. 2023, PyTorch FSDP, in its second form, `torch.distributed.fsdp.fully_shard`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kd_core.models.backends.attention import EnoughRead

Model = Any  # transformers ships no types
_LAYERS: WeakKeyDictionary[Model, list[Any]] = WeakKeyDictionary()


def shard(model: Model, device: torch.device) -> Model:
    """Share a model's layers out among the ranks of the default process group, in place, and put all on `device`.

    Every rank does so, with the same weights, not necessarily at the same time; best from the CPU: then no more than a
    layer is ever whole on the device. Raises ValueError for a model without a list of layers.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (get_world_size(),))
    layers = layers_of(model)
    for layer in layers:
        layer.forward = partial(_to_its_end, layer.forward)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        layer.set_gradient_divide_factor(1.0)  # the losses of ranks are parts of one sum
        layer.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        layer.register_forward_pre_hook(_hide_rows, prepend=True, with_kwargs=True)
        layer.register_forward_hook(_after)
    _LAYERS[model.to(device)] = layers
    return model


def layers_of(model: Model) -> list[Any]:
    """A decoder's layers, in their order. Raises ValueError for a model without a list of them."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    base = model.get_decoder()
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if len(layers) != base.config.num_hidden_layers:
        raise ValueError(
            f"a model of type {model.config.model_type!r} has no list of layers that can be shared out\n"
            "leave runtime.sharded at none, and runtime.teacher_devices at 1"
        )
    return layers


class _Hidden:
    """What nobody looks into."""

    def __init__(self, shown: Any) -> None:
        self.shown = shown


def _hide_rows(_layer: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """FSDP2 looks for tensors in whatever a layer is called with, and would give it copies of its rows."""
    return args, named | {"rows": _Hidden(named["rows"])} if "rows" in named else named


def _to_its_end(forward: Callable[..., Any], *args: Any, rows: _Hidden | None = None, **named: Any) -> Any:
    """A layer whose forward pass ends where enough is read: what it has left is its output, so that its end is seen.

    The copies are what the way back comes by first: there the weights are gathered again.
    """
    if rows is None:
        return forward(*args, **named)
    try:
        return forward(*args, rows=rows.shown, **named)
    except EnoughRead:
        kept, last = rows.shown.keys_values, rows.shown.last_layer
        kept[last] = key, value = tuple(x.clone() for x in kept[last])
        return [EnoughRead, key, value]


def _after(layer: Any, _args: Any, output: Any) -> None:
    if not torch.is_grad_enabled():  # FSDP2 notes every pass for the way back, and where there is none, for good
        for group in layer._get_fsdp_state()._fsdp_param_groups:
            group.comm_ctx.post_forward_order.pop()
            group._post_forward_indices.pop()
    if isinstance(output, list) and output[0] is EnoughRead:
        raise EnoughRead


def is_sharded(model: Model) -> bool:
    """Whether a model's layers are shared out among ranks."""
    return model in _LAYERS


def any_is_sharded() -> bool:
    """Whether there is a model here whose layers are shared out."""
    return len(_LAYERS) > 0


@contextmanager
def whole(*models: Model) -> Iterator[None]:
    """Within it, every rank has all weights of these models, and no pass waits for another rank."""
    layers = [layer for model in models for layer in _LAYERS.get(model, ())]
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True, recurse=False)
            layer.reshard()


def own_parameters(model: Model) -> dict[str, Tensor]:
    """A model's parameters that are not frozen, by name; all ranks call it.

    Parts have their place in memory from the first gathering on.
    """
    with whole(model):
        pass
    return {name: x for name, x in model.named_parameters() if x.requires_grad}


def is_part(parameter: Tensor) -> bool:
    """Whether ranks have parts of a parameter."""
    return hasattr(parameter, "device_mesh")


@torch.no_grad()
def part_of(parameter: Any) -> Tensor:
    """What this rank has of a parameter, in the same memory; all of it where it is whole."""
    part: Tensor = parameter.to_local() if is_part(parameter) else parameter
    return part


def gradient_of(parameter: Any) -> Tensor | None:
    """This rank's part of the sum of all ranks' gradients, taken off the parameter; None where there is none."""
    gradient, parameter.grad = parameter.grad, None
    return None if gradient is None else part_of(gradient)


@torch.no_grad()
def cut(tensor: Tensor, parameter: Any) -> Tensor:
    """This rank's part of a tensor that belongs to a parameter; all of it where that is whole, or this a number."""
    if not is_part(parameter) or tensor.dim() == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    found = distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    part: Tensor = found.to_local().clone()  # not a window on the whole
    return part


@torch.no_grad()
def joined(part: Tensor, parameter: Any) -> Tensor:
    """The tensor that `cut` gave each rank its part of. All ranks call it, and all have it then."""
    if not is_part(parameter) or part.dim() == 0:
        return part
    from torch.distributed.tensor import DTensor

    shape, stride = parameter.shape, parameter.stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    whole: Tensor = DTensor.from_local(
        part, mesh, placements, run_check=False, shape=shape, stride=stride
    ).full_tensor()
    return whole


def weights(model: Model, *, wanted: bool) -> dict[str, Tensor] | None:
    """A sharded model's state, whole, where it is `wanted`; all ranks call it. None of a model that is whole."""
    if not is_sharded(model):
        return None
    found = {}
    for name, x in model.state_dict().items():
        tensor = joined(part_of(x), x)
        if wanted:
            found[name] = tensor.cpu() if is_part(x) else tensor
    return found
