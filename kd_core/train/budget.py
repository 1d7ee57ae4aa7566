"""What every method that trains has in common, so that a comparison can give all of them the same."""

from dataclasses import dataclass, field
from typing import Literal

from kd_core.lengths import check_lengths, source_length
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import BatchSettings
from kd_core.train.state import OptimizerSettings

Keep = Literal["last", "reward", "reverse_kl"]
MIN_VARIETY = 0.8


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
    # weights that are kept: the last, or those of the validation whose samples have the highest reward or the lowest
    # reverse KL (the start is one), unless greedy outputs have less than `min_variety` of the start's distinct bigrams
    keep: Keep = field(default="last", metadata={"later": True})
    min_variety: float = field(default=MIN_VARIETY, metadata={"later": True})  # 0 = off
    patience: int = field(default=0, metadata={"later": True})  # validations without a better one that end it; 0 = off

    def __post_init__(self) -> None:
        for name in ("steps", "validation_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_lengths(self)
        if self.keep not in ("last", "reward", "reverse_kl"):
            raise ValueError(f"keep must be last, reward or reverse_kl, got {self.keep!r}")
        if not 0 <= self.min_variety <= 1:
            raise ValueError(f"min_variety must be in [0, 1], 0 = off, got {self.min_variety}")
        if self.patience < 0:
            raise ValueError(f"patience must be 0 (off) or more, got {self.patience}")
        if self.keep == "last" and (self.patience or self.min_variety != MIN_VARIETY):
            name = "patience" if self.patience else "min_variety"
            raise ValueError(f"{name} is of weights that are kept, and keep is last\nset keep to reward or reverse_kl")
        if self.patience and not self.validate_every:
            raise ValueError("patience counts validations, and validate_every is 0\nset validate_every")
        if self.validate_every < 0:
            raise ValueError(f"validate_every must be 0 (at the end only) or more, got {self.validate_every}")

    def validates_at(self, step: int) -> bool:
        """Whether the validation set is looked at after update `step`."""
        return step == self.steps or bool(self.validate_every and step % self.validate_every == 0)
