"""What a student is before it is taught: a model by name, one of a shape, or the teacher itself."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kd_core.models.loading import ModelSettings
from kd_core.models.prompts import Chat, Prompt, check_prompt


@dataclass(frozen=True, kw_only=True)
class StudentSettings(ModelSettings):
    """The student: a model by `name`, a `shape` over the teacher's tokenizer, or `from: teacher`, its own weights."""

    from_: Annotated[Literal["teacher"] | None, Field(alias="from")] = None
    prompt: str | None = None  # what it reads; null = the bare source, a decoder-only one what its teacher does
    chat: Chat | None = None  # in place of it: a turn of a chat, by the model's own chat template

    def __post_init__(self) -> None:
        if self.prompt is not None:
            check_prompt(self.prompt)
            if self.chat is not None:
                raise ValueError("a student reads either a prompt or a chat, got both")
        if self.from_ is None:
            super().__post_init__()
        elif self.name is not None or self.shape is not None or self.revision is not None:
            raise ValueError("a student from: teacher has neither name, revision nor shape of its own")

    @property
    def reads(self) -> Prompt | None:
        """What it reads of a source; None: not chosen."""
        return self.prompt if self.chat is None else self.chat

    def identity(self) -> dict[str, object]:
        """What makes this student itself, but not what it reads. One of the teacher has that beside it in a key."""
        return super().identity() if self.from_ is None else {"from": self.from_, "dtype": self.dtype}
