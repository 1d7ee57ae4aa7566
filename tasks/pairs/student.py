"""The student of a run on pairs: what it starts from, what it reads, and whether an adapter or all of it is trained."""

from dataclasses import dataclass, field

from kd_core.models.backends.lora import LoraSettings
from kd_core.models.prompts import Chat, Prompt, check_prompt
from tasks.compute.start import StartSettings


@dataclass(frozen=True, kw_only=True)
class StudentSettings(StartSettings):
    """The student: a model by `name`, a `shape` over the teacher's tokenizer, or `from: teacher`, or of its layers."""

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
        super().__post_init__()

    @property
    def reads(self) -> Prompt | None:
        """What it reads of a source; None: not chosen."""
        return self.prompt if self.chat is None else self.chat

    def identity(self) -> dict[str, object]:
        """What makes this student itself; what it reads is told apart, as is a teacher that it is made of, and how."""
        own: dict[str, object] = {"from": self.from_, "dtype": self.dtype}
        start = own if self.from_ is not None else super().identity()
        return start if self.lora is None else start | {"lora": self.lora}
