"""What every method that trains has in common, so that a comparison can give all of them the same."""

from dataclasses import dataclass, field

from kd_core.lengths import check_lengths, source_length
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import BatchSettings
from kd_core.train.state import OptimizerSettings


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Updates, data and optimizer of a method that goes on from the pre-distilled student.

    Where a method samples it takes the student's whole distribution, as the divergences' expectations have it; LLMR
    has its own.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    steps: int = 1000
    max_source_tokens: int = source_length()
    validate_every: int = 100  # updates between two looks at the validation set; 0 = at the end only
    validation_rows: int = 256
    sampling: SamplingSettings = field(default_factory=SamplingSettings)  # its limit cuts the teacher's outputs too
    batch: BatchSettings = field(default_factory=BatchSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        for name in ("steps", "validation_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_lengths(self)
        if self.validate_every < 0:
            raise ValueError(f"validate_every must be 0 (at the end only) or more, got {self.validate_every}")

    def validates_at(self, step: int) -> bool:
        """Whether the validation set is looked at after update `step`."""
        return step == self.steps or bool(self.validate_every and step % self.validate_every == 0)
