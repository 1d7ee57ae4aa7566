"""The stage `evaluate`: all systems on the same inputs, side by side; metrics and differences with intervals.

Each system's outputs and measurements are stages of their own (`decode`, `measure`), so that comparisons share them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.losses.rewards import RewardSettings
from kd_core.metrics.outputs import AGREEMENT
from kd_core.rollout.beam_search import BeamSettings
from tasks.compute.measured import read_replicates, write_measured
from tasks.pairs.decode import GREEDY, UNREAD, DecodeSettings
from tasks.pairs.inputs import read_split
from tasks.pairs.measure import MeasureSettings
from tasks.settings import part_of
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
        *((name, pa.float64()) for name in AGREEMENT),  # summed over the output's tokens, as `decode` has them
    ]
)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(MeasureSettings, DecodeSettings):
    """How the systems are compared. All of them decode alike; `seed` is of the samples, and of the bootstrap."""

    decoding: BeamSettings = GREEDY
    reward: RewardSettings = field(default_factory=RewardSettings)  # the teacher's, which every system is given

    def __post_init__(self) -> None:
        _ = self.decode, self.measure  # they check the ranges

    @property
    def decode(self) -> DecodeSettings:
        """What decides a system's outputs; what is not read is in no key."""
        if self.sampling is None:
            return part_of(self, DecodeSettings, seed=0)
        return part_of(self, DecodeSettings, decoding=UNREAD)

    @property
    def measure(self) -> MeasureSettings:
        """What decides how they are measured."""
        return part_of(self, MeasureSettings)


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
    columns |= {name: written[name] for name in written.column_names if name in PREDICTIONS.names}
    unknown = {name: pa.nulls(len(written)) for name in PREDICTIONS.names if name not in columns}  # to older outputs
    return pa.table(columns | unknown).select(PREDICTIONS.names).cast(PREDICTIONS)
