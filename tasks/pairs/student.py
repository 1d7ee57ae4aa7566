"""What a student is before it is taught: a model by name, one of a shape, or the teacher itself."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kd_core.models.loading import ModelSettings


@dataclass(frozen=True, kw_only=True)
class StudentSettings(ModelSettings):
    """The student: a model by `name`, a `shape` over the teacher's tokenizer, or `from: teacher`, its own weights."""

    from_: Annotated[Literal["teacher"] | None, Field(alias="from")] = None

    def __post_init__(self) -> None:
        if self.from_ is None:
            super().__post_init__()
        elif self.name is not None or self.shape is not None or self.revision is not None:
            raise ValueError("a student from: teacher has neither name, revision nor shape of its own")

    def identity(self) -> dict[str, object]:
        """What makes this student itself; where it is made of the teacher, the teacher stands beside it in a key."""
        return super().identity() if self.from_ is None else {"from": self.from_, "dtype": self.dtype}
