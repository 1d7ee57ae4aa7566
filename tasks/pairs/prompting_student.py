"""The stage `prompting_student`: the student as it is, to be prompted like the teacher. Nothing is trained."""

from dataclasses import dataclass, replace
from typing import Literal

from kd_core.models.loading import save_model
from tasks.compute.device import device_of
from tasks.compute.reference import refer
from tasks.pairs.pre_distill import untrained_student
from tasks.pairs.student import StudentSettings
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage


@dataclass(frozen=True, kw_only=True)
class PromptingStudentSettings:
    """LLMR's baseline "prompting student" (Table 1). Nothing is trained, so there is nothing to set."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    kind: Literal["prompting_student"] = "prompting_student"


@stage
def prompting_student(build: Build, teacher: Artifact, student: StudentSettings, seed: int) -> None:
    """Write reference.json (a named student) or model/ (a described one, with the random weights it starts from)."""
    if student.name is not None:
        refer(build, student)
        return
    loaded = untrained_student(replace(student, lora=None), teacher, seed, device_of(build.runtime))
    save_model(loaded.model, loaded.tokenizer, build.dir / "model")
    build.warn("the student is described by its shape: prompting it before any training shows what random weights say")
