"""The stage `dagger_aggregate`: the student runs free, and the teacher labels every context that it gets into."""

from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kd_core.models.policy import head_of
from kd_core.rollout.sampling import SamplingSettings, mixed_seed
from kd_core.rollout.teacher_labels import LabelSettings
from kd_core.windows.cutting import WindowSettings, trajectory_starts
from kd_core.windows.dad_dagger import Aggregated, aggregate
from kd_core.windows.last_block import next_hidden
from kd_core.windows.trunk import TrunkPrecision
from tasks.compute.device import device_of, teacher_devices
from tasks.compute.models import LoadedModel, load_artifact
from tasks.engine.settings import RuntimeSettings
from tasks.labels.files import labels_writer, warn_if_widened
from tasks.store.artifacts import Artifact
from tasks.store.shards import Making, Shard, Sharded, Writer
from tasks.store.stage import Build, stage
from tasks.text.aggregated_files import aggregated_table
from tasks.text.dagger_settings import AggregationSettings
from tasks.text.tokens import read_tokens
from tasks.text.window_files import FeatureDType, trunk_names, trunk_writers

SHARD_TRAJECTORIES = 64  # that run side by side


@stage
def dagger_aggregate(
    build: Build,
    corpus: Artifact,
    teacher: Artifact | None,
    student: Artifact,
    windows: WindowSettings,
    settings: AggregationSettings,
    labels: LabelSettings | None,
    features: FeatureDType | None,
    number: int,
    seed: int,
    student_precision: TrunkPrecision = "float32",
) -> None:
    """Write aggregated-*.parquet, labels-*.parquet and, where they are kept, features; shards survive a kill.

    `settings.trunk_precision` is the teacher's here: the student's blocks need not be frozen.
    """
    start_B = _starts(len(read_tokens(corpus, "train")), windows, settings)
    labelled = teacher is not None and labels is not None
    parts = (
        Shard(_files(i, labels=labelled, features=features is not None), i, len(part_B))
        for i, part_B in enumerate(start_B.split(SHARD_TRAJECTORIES))
    )
    shards = Sharded(build, "trajectories", parts)
    shards.make(
        partial(_opens, corpus, teacher, student, windows, settings, labels, features, number, seed, student_precision)
    )
    build.shards.collect(*shards.files)
    if labels is not None and labels.kind == "hidden":
        warn_if_widened(build, [name for name in shards.files if name.startswith("labels-")])
    tables = [pq.read_table(path, columns=["left"]) for path in build.dir.glob("aggregated-*.parquet")]
    left = pa.concat_tables(tables)["left"]
    build.record(predictions=len(left), left_the_text=sum(left.to_pylist()) / len(left))


def _starts(length: int, windows: WindowSettings, settings: AggregationSettings) -> torch.Tensor:
    stride = settings.trajectory_stride or windows.context + settings.horizon
    return trajectory_starts(length, windows.context, settings.horizon, stride)


def _opens(
    corpus: Artifact,
    teacher: Artifact | None,
    student: Artifact,
    windows: WindowSettings,
    settings: AggregationSettings,
    labels: LabelSettings | None,
    features: FeatureDType | None,
    number: int,
    seed: int,
    student_precision: TrunkPrecision,
    runtime: RuntimeSettings,
) -> Callable[[int], Making]:
    """The models and the text, opened once a process; then what makes a shard of trajectories, by its number."""
    device = device_of(runtime)
    student_model = load_artifact(student, device)
    teacher_model = None if teacher is None or labels is None else load_artifact(teacher, teacher_devices(runtime))
    text_N = read_tokens(corpus, "train", device)
    start_B = _starts(len(text_N), windows, settings).to(device)

    @torch.no_grad()
    def work(shard: int) -> Making:
        yield 0
        (part,) = aggregate(
            student_model.model,
            text_N,
            start_B,
            windows.context,
            settings.horizon,
            mixed_seed(seed, number),
            sampling=SamplingSettings(max_new_tokens=1, temperature=settings.temperature),
            packed=windows.mode == "packed",
            num_tokens=student_model.num_tokens,
            batch_rows=SHARD_TRAJECTORIES,
            batches=[shard],
            trunk_precision=student_precision,
        )
        table = aggregated_table(part, number, windows.context)
        writers: list[Writer] = [partial(pq.write_table, table)]
        if teacher_model is not None and labels is not None:
            hidden_ME = _after(teacher_model, part, labels.batch_rows, settings.trunk_precision)
            head = head_of(teacher_model.model, teacher_model.num_tokens)
            place = table.select(["trajectory", "step"])
            writers.append(labels_writer(hidden_ME, head, labels, mixed_seed(seed, number, shard), place))
        if features is not None:
            writers += trunk_writers(part.below, features)
        return writers

    return work


def _after(teacher: LoadedModel, part: Aggregated, batch_rows: int, precision: TrunkPrecision) -> torch.Tensor:
    """The teacher's final states after each of the student's contexts. Shapes: -> (M*P, E)."""
    width, device = part.target_MP.shape[1], teacher.model.device
    batches = part.context_ML.split(batch_rows)
    return torch.cat([next_hidden(teacher.model, ids_BL.to(device), width, precision) for ids_BL in batches])


def _files(shard: int, *, labels: bool, features: bool) -> tuple[str, ...]:
    """The files of a shard."""
    kinds = ("aggregated", "labels") if labels else ("aggregated",)
    return *(f"{kind}-{shard:05d}.parquet" for kind in kinds), *(trunk_names("aggregated", shard) if features else ())
