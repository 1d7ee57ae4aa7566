"""The stage `exposure`: a student's excess error by length, the measure of its exposure bias."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.nn.functional as F
from torch import Tensor

from kd_core.lengths import check_lengths, source_length, target_length
from kd_core.metrics.bootstrap import Resamples
from kd_core.metrics.excess_error import Reader, excess_error, prefix_kl
from kd_core.metrics.intervals import Floats
from kd_core.models.prompts import Prompts
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import SamplingSettings
from tasks.compute.device import teacher_devices
from tasks.compute.models import LoadedModel, load_pair
from tasks.engine.settings import RuntimeSettings
from tasks.pairs.decode import DecodeSettings
from tasks.pairs.inputs import prompt_rows, read_split, student_rows
from tasks.ranges import SEEDS
from tasks.store.artifacts import Artifact
from tasks.store.shards import Making, Shard, Sharded
from tasks.store.stage import Build, stage

BATCH_ROWS = 64

EXCESS_ERROR = pa.schema(
    [
        ("length", pa.int32()),
        ("d_student", pa.float64()),  # nats per output
        ("d_teacher", pa.float64()),
        ("value", pa.float64()),  # ExError%, pointwise 95 % band
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n", pa.int64()),
        ("note", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ExposureSettings:
    """How prefixes are sampled for the excess error: from each model's own distribution, at temperature 1."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    split: Literal["validation", "test"] = "test"
    rows: int = 1000  # inputs, the first ones of the split
    samples: int = 1  # prefixes per input; more inputs narrow the band more than more samples do
    max_length: int = target_length()  # the curve's last length, in tokens
    max_source_tokens: int = source_length()
    resamples: int = 1000  # of the bootstrap over inputs
    seed: int = 0  # of the samples and the bootstrap

    def __post_init__(self) -> None:
        for name in ("rows", "samples", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_lengths(self)
        _ = self.decode(0)  # checks the rest
        if self.seed + self.samples - 1 > SEEDS[1]:
            raise ValueError(f"seed + samples - 1, the last sample's seed, must be at most {SEEDS[1]}")

    def decode(self, sample: int) -> DecodeSettings:
        """How the prefixes number `sample` = 0, 1, … of each input are drawn."""
        return DecodeSettings(
            split=self.split,
            max_rows=self.rows,
            max_source_tokens=self.max_source_tokens,
            sampling=SamplingSettings(max_new_tokens=self.max_length),
            seed=self.seed + sample,
        )


@stage
def exposure(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    student: Artifact,
    student_outputs: Mapping[str, Artifact],
    teacher_outputs: Mapping[str, Artifact],
    prompt: Prompts,
    settings: ExposureSettings,
) -> None:
    """Write excess_error.parquet from the samples (`decode` artifacts) of both, which read what `prompt` says."""
    sides = {"student": student_outputs, "teacher": teacher_outputs}
    parts = (Shard((f"{side}-{i}.npy",), each) for side, outputs in sides.items() for i, each in outputs.items())
    shards = Sharded(build, "sets of prefixes", parts)
    shards.make(partial(_opens, corpus, teacher, student, prompt, settings))

    def mean(side: str) -> Floats:
        curves = [np.load(build.shards.dir / name) for name in shards.files if name.startswith(side)]
        return np.asarray(np.mean(curves, axis=0))

    num_sources = len(read_split(corpus, settings.split, ("source",), settings.rows)["source"])
    resamples = Resamples(num_outputs=num_sources, num_resamples=settings.resamples, seed=settings.seed)
    rows = [
        {"length": each.length, "d_student": each.d_student, "d_teacher": each.d_teacher}
        | {name: getattr(each.value, name) for name in ("value", "low", "high", "n", "note")}
        for each in excess_error(mean("student"), mean("teacher"), resamples)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXCESS_ERROR), build.dir / "excess_error.parquet")


def _opens(
    corpus: Artifact,
    teacher: Artifact,
    student: Artifact,
    prompt: Prompts,
    settings: ExposureSettings,
    runtime: RuntimeSettings,
) -> Callable[[Artifact], Making]:
    """Both models and all that they read, opened once a process; then what makes the curves of a set of outputs."""
    teacher_model, student_model = load_pair(teacher, student, teacher_devices(runtime))
    sources = read_split(corpus, settings.split, ("source",), settings.rows)["source"]
    read = (
        _Read(teacher_model, prompt_rows(teacher_model, prompt.teacher, sources, settings.max_source_tokens)),
        _Read(student_model, student_rows(student_model, prompt, sources, settings.max_source_tokens)),
    )

    def work(outputs: Artifact) -> Making:
        yield 0
        return [partial(_save, _accumulated(*read, outputs, settings.max_length))]

    return work


@dataclass(frozen=True)
class _Read:
    """A model and the inputs as it reads them."""

    loaded: LoadedModel
    sources: TokenRows

    def reader(self, rows: Tensor) -> Reader:
        model = self.loaded.model
        return Reader(model, *self.sources.batch(rows, model.config.pad_token_id, model.device))


def _accumulated(teacher: _Read, student: _Read, outputs: Artifact, max_length: int) -> Floats:
    """The KL of each output's steps, summed up to each length. Shapes: -> (N, L)."""
    written = pq.read_table(outputs.path / "outputs.parquet", columns=["token_ids"])["token_ids"].to_pylist()
    tokens, model = TokenRows.of(written), student.loaded.model
    curve_NL = np.zeros((len(tokens), max_length))
    for rows in tokens.lengths.argsort(stable=True).split(BATCH_ROWS):
        batch, mask = tokens.batch(rows, model.config.pad_token_id, model.device)
        kl_BT = prefix_kl(teacher.reader(rows), student.reader(rows), batch, mask, num_tokens=student.loaded.num_tokens)
        after_the_end = max_length - kl_BT.shape[1]
        curve_NL[rows.numpy()] = F.pad(kl_BT.double(), (0, after_the_end)).cumsum(dim=1).cpu().numpy()
    return curve_NL


def _save(curve_NL: Floats, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, curve_NL)
