"""Steps of decoding as CUDA graphs: captured once a shape and rollout, then replayed without Python in between.

A step of a small model keeps a GPU busy for less time than Python takes to start its kernels. What a graph reads and
writes stays where it was when it was captured, so a step has buffers of its own, and shapes that it is rounded up to.
The buffers are those of one rollout, and so are the graphs: the next one captures anew.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

Model = Any  # transformers ships no types
Shape = tuple[int, int]  # rows, and cached places that they attend to
PLACES = 64  # to a multiple of which places are rounded up; rows to a power of two
_MODELS: WeakSet[Model] = WeakSet()


@contextmanager
def in_graphs(model: Model) -> Iterator[None]:
    """Within it, a decoder-only model on stock modules writes by graphs.

    On other devices than CUDA the same steps over the same buffers run one by one: slower, the same tokens.
    """
    _MODELS.add(model)
    try:
        yield
    finally:
        _MODELS.discard(model)


@contextmanager
def out_of_graphs(model: Model) -> Iterator[None]:
    """Within it, a model writes by no graphs; afterwards as before."""
    within = model in _MODELS
    _MODELS.discard(model)
    try:
        yield
    finally:
        if within:
            _MODELS.add(model)


def writes_in_graphs(model: Model) -> bool:
    """Whether this is within `in_graphs`."""
    return model in _MODELS


def rounded(rows: int, most_rows: int, places: int, most_places: int) -> Shape:
    """What a step's shape is rounded up to, so that few are captured."""
    return min(most_rows, 1 << (rows - 1).bit_length()), min(most_places, -(-places // PLACES) * PLACES)


@dataclass
class Graphs:
    """Graphs of one function, by shape. It may be run again with the same effect: capturing it runs it beforehand.

    The function is given at each run and not kept: a method of whoever has these graphs would keep him, and all that
    his graphs hold on the device, until Python next looks for cycles.
    """

    captured: dict[Shape, tuple[torch.cuda.CUDAGraph, Tensor]] = field(default_factory=dict)

    def run(self, function: Callable[[Shape], Tensor], shape: Shape, device: torch.device) -> Tensor:
        """What the function returns; the next run of this shape writes over it."""
        if device.type != "cuda":
            return function(shape)
        if shape not in self.captured:
            self.captured[shape] = self._capture(function, shape)
        graph, out = self.captured[shape]
        graph.replay()
        return out

    def _capture(self, function: Callable[[Shape], Tensor], shape: Shape) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Raises ValueError, in two lines, for a function that waits for the device."""
        aside, graph, stream = torch.cuda.Stream(), torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        aside.wait_stream(stream)
        with torch.cuda.stream(aside):
            function(shape)  # what is only made the first time is no part of a graph
        stream.wait_stream(aside)
        # graphs of one stream take turns, and what they return is held: the rest of their memory may be the same
        pool = next((other.pool() for other, _ in self.captured.values()), None)
        try:
            with torch.cuda.graph(graph, pool=pool):
                out = function(shape)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            said = f"no CUDA graph of this model's steps: {error}".splitlines()[0]
            raise ValueError(f"{said}\nset runtime.cuda_graphs to false") from error
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own
        return graph, out
