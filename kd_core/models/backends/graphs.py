"""Steps of decoding as CUDA graphs: captured once a shape, then replayed without Python in between.

A step of a small model keeps a GPU busy for less time than Python takes to start its kernels. What a graph reads and
writes stays where it was when it was captured, so a step has buffers of its own, and shapes that it is rounded up to.
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


def writes_in_graphs(model: Model) -> bool:
    """Whether this is within `in_graphs`."""
    return model in _MODELS


def rounded(rows: int, most_rows: int, places: int, most_places: int) -> Shape:
    """What a step's shape is rounded up to, so that few are captured."""
    return min(most_rows, 1 << (rows - 1).bit_length()), min(most_places, -(-places // PLACES) * PLACES)


@dataclass
class Graphs:
    """Graphs of one function, by shape. It may be run again with the same effect: capturing it runs it beforehand."""

    function: Callable[[Shape], Tensor]
    captured: dict[Shape, tuple[torch.cuda.CUDAGraph, Tensor]] = field(default_factory=dict)

    def run(self, shape: Shape, device: torch.device) -> Tensor:
        """What the function returns; the next run of this shape writes over it."""
        if device.type != "cuda":
            return self.function(shape)
        if shape not in self.captured:
            self.captured[shape] = self._capture(shape)
        graph, out = self.captured[shape]
        graph.replay()
        return out

    def _capture(self, shape: Shape) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Raises ValueError, in two lines, for a function that waits for the device."""
        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self.function(shape)  # what is only made the first time is no part of a graph
        torch.cuda.current_stream().wait_stream(aside)
        try:
            with torch.cuda.graph(graph):
                out = self.function(shape)
        except RuntimeError as error:
            said = f"no CUDA graph of this model's steps: {error}".splitlines()[0]
            raise ValueError(f"{said}\nset runtime.cuda_graphs to false") from error
        return graph, out
