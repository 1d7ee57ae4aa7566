"""What a student is before it is taught: a model by name, one of a shape, the teacher itself, or some of its layers."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from kd_core.models.loading import ModelSettings
from kd_core.models.pruning import Choice, Layers
from kd_core.precision import check_precision


@dataclass(frozen=True, kw_only=True)
class StartSettings(ModelSettings):
    """The student: a model by `name`, a `shape` over the teacher's tokenizer, or `from: teacher`, or of its layers."""

    from_: Annotated[Literal["teacher"] | None, Field(alias="from")] = None
    layers: Layers | None = None  # of the teacher's (decoder's): how many are kept, or which ones; null = all
    choose: Choice = "even"  # which, where it is a number: evenly spread, without the middle, or of most influence

    def __post_init__(self) -> None:
        if self.layers is not None and self.from_ is None:
            raise ValueError("layers are the teacher's: they need from: teacher")
        if self.from_ is None:
            super().__post_init__()
        elif self.name is not None or self.shape is not None or self.revision is not None:
            raise ValueError("a student from: teacher has neither name, revision nor shape of its own")
        else:
            check_precision("dtype", self.dtype)
        if self.layers is not None:
            self._check_layers(self.layers)
        elif self.choose != "even":
            raise ValueError(f"choose says which layers are kept, and layers not how many: choose is {self.choose!r}")

    def _check_layers(self, layers: Layers) -> None:
        if isinstance(layers, int):
            if layers < 1:
                raise ValueError(f"layers must be at least 1, got {layers}")
        elif not layers or layers[0] < 0 or any(one >= other for one, other in pairwise(layers)):
            raise ValueError(f"layers must name some, counted from 0, each once and in their order, got {list(layers)}")
        elif self.choose != "even":
            raise ValueError("choose says which layers are kept where layers is a number, and here they are named")
