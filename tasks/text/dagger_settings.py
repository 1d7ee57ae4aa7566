"""What a run on windows can be told: the method, its rounds, and what each round's two stages take of it."""

from dataclasses import dataclass, field
from typing import Literal

from kd_core.train.state import OptimizerSettings
from kd_core.windows.train import WindowTrainingSettings
from kd_core.windows.trunk import TrunkPrecision
from tasks.settings import part_of
from tasks.text.window_files import FeatureDType

DaggerKind = Literal["next_token", "dad", "imitkd", "dad_dagger"]
FIXED_ALPHA: dict[DaggerKind, float] = {"dad": 1.0, "imitkd": 0.0}


@dataclass(frozen=True, kw_only=True)
class AggregationSettings:
    """How the student is let run free to see what it would meet."""

    horizon: int = 10  # tokens that it writes from each trajectory's context
    trajectory_stride: int | None = None  # tokens between two trajectories; None = context + horizon, as Algorithm 1
    temperature: float = 1.0
    # of all blocks but the last, student's and teacher's, where they are frozen; bfloat16 = autocast
    trunk_precision: TrunkPrecision = field(default="float32", metadata={"later": True})

    def __post_init__(self) -> None:
        if self.horizon < 2:
            raise ValueError(f"horizon must be at least 2 for a student's own token to be seen, got {self.horizon}")
        if self.trajectory_stride is not None and self.trajectory_stride < 1:
            raise ValueError(f"trajectory_stride must be at least 1, got {self.trajectory_stride}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.trunk_precision not in ("float32", "bfloat16"):
            raise ValueError(f"trunk_precision must be float32 or bfloat16, got {self.trunk_precision!r}")


@dataclass(frozen=True, kw_only=True)
class DaggerSettings(AggregationSettings):
    """DaD-DAgger and its baselines. Defaults: the paper's.

    `next_token` distils on the true windows alone, over as many rounds of training; `dad` aggregates and has no teacher
    (alpha 1); `imitkd` aggregates and has the teacher alone (alpha 0); `dad_dagger` mixes.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    kind: DaggerKind = "dad_dagger"
    alpha: float | None = None  # of the true token, 1 - alpha of the teacher; None = the kind's own, or 0.5
    rounds: int = 3  # of training; the student is let run free between two of them
    warm_start: bool = True  # each round goes on from the last one's student; false: from the start
    features: FeatureDType | Literal["none"] = "float16"  # how the frozen part's states are kept; none: not at all
    epochs: int = 4  # of each round
    patience: int = 1  # epochs without a lower validation loss before a round stops; 0 = never stops early
    batch_rows: int = 32
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=2.5e-5))

    def __post_init__(self) -> None:
        if self.kind not in ("next_token", "dad", "imitkd", "dad_dagger"):
            raise ValueError(f"kind must be next_token, dad, imitkd or dad_dagger, got {self.kind!r}")
        fixed = FIXED_ALPHA.get(self.kind)
        if fixed is not None and self.alpha not in (None, fixed):
            raise ValueError(
                f"{self.kind} has alpha {fixed:g}, got {self.alpha}\nleave alpha out, or use kind dad_dagger"
            )
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.features not in ("float16", "float32", "none"):
            raise ValueError(f"features must be float16, float32 or none, got {self.features!r}")
        super().__post_init__()
        self.training()  # its own checks

    @property
    def mix(self) -> float:
        """The alpha in force: the kind's own, or the given one, or 0.5."""
        return FIXED_ALPHA.get(self.kind, 0.5) if self.alpha is None else self.alpha

    @property
    def aggregates(self) -> bool:
        """Whether the student's own contexts are added to the data."""
        return self.kind != "next_token"

    def training(self) -> WindowTrainingSettings:
        """The settings of `dagger_train`."""
        return part_of(self, WindowTrainingSettings, alpha=self.mix)

    def aggregation(self) -> AggregationSettings:
        """The settings of `dagger_aggregate`."""
        return part_of(self, AggregationSettings)
