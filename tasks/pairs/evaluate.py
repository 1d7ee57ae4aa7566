"""The stage `evaluate`: all systems on the same inputs, side by side; metrics and differences with intervals.

Each system's outputs and measurements are stages of their own (`decode`, `measure`), so that comparisons share them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.lengths import source_length
from kd_core.losses.rewards import RewardSettings
from kd_core.metrics.bleu import SacreBleuSettings
from kd_core.metrics.outputs import TEXT_METRICS, MetricName
from kd_core.metrics.rouge import RougeSettings
from kd_core.rollout.beam_search import BeamSettings
from kd_core.rollout.sampling import SamplingSettings
from tasks.compute.measured import read_replicates, write_measured
from tasks.pairs.decode import GREEDY, UNREAD, DecodeSettings
from tasks.pairs.measure import MeasureSettings
from tasks.pairs.splits import read_split
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage

PREDICTIONS = pa.schema(
    [
        ("id", pa.int64()),
        ("system", pa.string()),
        ("source", pa.string()),
        ("reference", pa.string()),
        ("prediction", pa.string()),
        ("num_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("reward", pa.float64()),  # the teacher's, summed over the output's tokens, in nats of logit
    ]
)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the systems are compared. All of them decode alike."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    split: Literal["validation", "test"] = "test"
    max_rows: int | None = None  # the first rows of the split; None = all
    max_source_tokens: int = source_length()
    decoding: BeamSettings = GREEDY
    sampling: SamplingSettings | None = None  # draw the outputs instead, as a chat does: then decoding is not read
    metrics: tuple[MetricName, ...] = TEXT_METRICS  # sequence tasks, such as spelling to phonemes: add per and wer
    rouge: RougeSettings = field(default_factory=RougeSettings)  # its tokenizer: ascii, or words of every script
    sacrebleu: SacreBleuSettings = field(default_factory=SacreBleuSettings)  # its tokenizer: any of sacreBLEU's own
    reward: RewardSettings = field(default_factory=RewardSettings)  # the teacher's, which every system is given
    resamples: int = 1000  # of the bootstrap behind the 95 % intervals
    seed: int = 0  # of the bootstrap, and of the samples

    def __post_init__(self) -> None:
        _ = self.decode, self.measure  # they check the ranges

    @property
    def decode(self) -> DecodeSettings:
        """What decides a system's outputs."""
        return DecodeSettings(
            split=self.split,
            max_rows=self.max_rows,
            max_source_tokens=self.max_source_tokens,
            decoding=self.decoding if self.sampling is None else UNREAD,
            sampling=self.sampling,
            seed=self.seed if self.sampling is not None else 0,
        )

    @property
    def measure(self) -> MeasureSettings:
        """What decides how they are measured."""
        return MeasureSettings(
            metrics=self.metrics,
            resamples=self.resamples,
            seed=self.seed,
            rouge=self.rouge,
            sacrebleu=self.sacrebleu,
        )


@stage
def evaluate(
    build: Build,
    corpus: Artifact,
    outputs: Mapping[str, Artifact],
    measures: Mapping[str, Artifact],
) -> None:
    """Write predictions.parquet, metrics.parquet, differences.parquet and replicates.parquet of all systems.

    outputs, measures: the artifacts of `decode` and `measure` by name of the system, of the same inputs and resamples;
    a difference is of a system and one before it.
    """
    written = {name: pq.read_table(artifact.path / "outputs.parquet") for name, artifact in outputs.items()}
    (split,) = {table["split"][0].as_py() for table in written.values()}
    tables = [_predictions(name, table, corpus, split) for name, table in written.items()]
    pq.write_table(pa.concat_tables(tables), build.dir / "predictions.parquet")
    found = {name: read_replicates(artifact.path / "replicates.parquet") for name, artifact in measures.items()}
    write_measured(build.dir, split, found)


def _predictions(system: str, written: pa.Table, corpus: Artifact, split: str) -> pa.Table:
    texts = read_split(corpus, split, ("source", "target"), len(written))
    columns = {"system": [system] * len(written), "source": texts["source"], "reference": texts["target"]}
    names = [name for name in PREDICTIONS.names if name not in columns]
    return pa.table(columns | {name: written[name] for name in names}).select(PREDICTIONS.names).cast(PREDICTIONS)
