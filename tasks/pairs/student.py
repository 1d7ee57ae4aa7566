"""What a student is before it is taught: a model by name, one of a shape, the teacher itself, or some of its layers."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from kd_core.models.backends.lora import LoraSettings
from kd_core.models.loading import ModelSettings
from kd_core.models.prompts import Chat, Prompt, check_prompt
from kd_core.models.pruning import Choice, Layers


@dataclass(frozen=True, kw_only=True)
class StudentSettings(ModelSettings):
    """The student: a model by `name`, a `shape` over the teacher's tokenizer, or `from: teacher`, or of its layers."""

    from_: Annotated[Literal["teacher"] | None, Field(alias="from")] = None
    layers: Layers | None = None  # of the teacher's (decoder's): how many are kept, or which ones; null = all
    choose: Choice = "even"  # which, where it is a number: evenly spread, without the middle, or of most influence
    prompt: str | None = None  # what it reads; null = the bare source, a decoder-only one what its teacher does
    chat: Chat | None = None  # in place of it: a turn of a chat, by the model's own chat template
    lora: LoraSettings | None = field(default=None, metadata={"later": True})  # train an adapter; the weights stay

    def __post_init__(self) -> None:
        if self.lora is not None and self.shape is not None:
            raise ValueError("a student described by shape starts at random: there is nothing that lora could adapt")
        if self.prompt is not None:
            check_prompt(self.prompt)
            if self.chat is not None:
                raise ValueError("a student reads either a prompt or a chat, got both")
        if self.from_ is None:
            super().__post_init__()
        elif self.name is not None or self.shape is not None or self.revision is not None:
            raise ValueError("a student from: teacher has neither name, revision nor shape of its own")
        if self.layers is not None:
            self._check_layers(self.layers)
        elif self.choose != "even":
            raise ValueError(f"choose says which layers are kept, and layers not how many: choose is {self.choose!r}")

    def _check_layers(self, layers: Layers) -> None:
        if self.from_ is None:
            raise ValueError("layers are the teacher's: they need from: teacher")
        if isinstance(layers, int):
            if layers < 1:
                raise ValueError(f"layers must be at least 1, got {layers}")
        elif not layers or layers[0] < 0 or any(one >= other for one, other in pairwise(layers)):
            raise ValueError(f"layers must name some, counted from 0, each once and in their order, got {list(layers)}")
        elif self.choose != "even":
            raise ValueError("choose says which layers are kept where layers is a number, and here they are named")

    @property
    def reads(self) -> Prompt | None:
        """What it reads of a source; None: not chosen."""
        return self.prompt if self.chat is None else self.chat

    def identity(self) -> dict[str, object]:
        """What makes this student itself; what it reads is told apart, as is a teacher that it is made of, and how."""
        own: dict[str, object] = {"from": self.from_, "dtype": self.dtype}
        start = own if self.from_ is not None else super().identity()
        return start if self.lora is None else start | {"lora": self.lora}
