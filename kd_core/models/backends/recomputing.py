"""Blocks that are run again on the way back: of what they compute, nothing but their inputs is kept until then.

The gradients are the same, byte for byte, for a second forward pass in place of most of the activations' memory
(Chen et al. 2016). transformers has such a switch, but it works in training mode alone, where dropout is on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch.utils.checkpoint import checkpoint

from kd_core.models.backends.attention import EnoughRead, is_own_attention, own_attention

Model = Any  # transformers ships no types
T = TypeVar("T")
_MODELS: WeakSet[Model] = WeakSet()


@contextmanager
def recomputing(model: Model) -> Iterator[None]:
    """Within it, gradients of a model are computed in less memory. Raises ValueError for one without known blocks."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise ValueError(
            f"a model of type {model.config.model_type!r} has no blocks that can be run again\n"
            "set runtime.gradient_checkpointing to false"
        )
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(_stock, model.get_decoder(), block.forward)
    _MODELS.add(model)
    try:
        yield
    finally:
        _MODELS.discard(model)
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:  # of a sharded model
                block.forward = forward


def run_block(model: Model, block: Callable[..., T], *args: Any) -> T:
    """`block(*args)`, which is run again on the way back where the model's blocks are."""
    if model not in _MODELS or not torch.is_grad_enabled():
        return block(*args)
    found: T = checkpoint(block, *args, use_reentrant=False)
    return found


def _stock(base: Model, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """A stock block, whose attention is asked for in the way in which it is the first time."""
    if not torch.is_grad_enabled():
        return forward(*args, **named)
    again = own_attention(base) if is_own_attention(base) else nullcontext()
    run = partial(_told, forward)
    found = checkpoint(run, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again), **named)
    if found is EnoughRead:
        raise EnoughRead
    return found


def _told(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """A block's output, or that it has ended early: `checkpoint` expects no exception to come out of it."""
    try:
        return forward(*args, **named)
    except EnoughRead:
        return EnoughRead
