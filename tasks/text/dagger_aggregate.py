"""The stage `dagger_aggregate`: the student runs free, and every context it gets into is answered by the teacher."""

from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kd_core.rollout.sampling import SamplingSettings
from kd_core.training import mixed_seed
from kd_core.windows.dad_dagger import Aggregated, aggregate
from kd_core.windows.gpt_neo import head_weight, next_hidden
from kd_core.windows.teacher_labels import LabelSettings, make_labels
from kd_core.windows.windows import WindowSettings, trajectory_starts
from tasks.compute import LoadedModel, device_of, load_artifact
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage
from tasks.text.aggregated_files import aggregated_table
from tasks.text.dagger_settings import AggregationSettings
from tasks.text.label_files import write_labels
from tasks.text.tokens import read_tokens
from tasks.text.window_files import FeatureDType, trunk_names, write_trunk

SHARD_TRAJECTORIES = 64  # that run side by side; a shard is written whole, and never again


@stage
@torch.no_grad()
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
) -> None:
    """Write aggregated-*.parquet, labels-*.parquet and, where they are kept, features; shards survive a kill."""
    device = device_of(build.runtime)
    pupil = load_artifact(student, device)
    guide = None if teacher is None or labels is None else load_artifact(teacher, device)
    text_N = read_tokens(corpus, "train", device)
    stride = settings.trajectory_stride or windows.context + settings.horizon
    start_B = trajectory_starts(len(text_N), windows.context, settings.horizon, stride).to(device)
    shards = range(0, len(start_B), SHARD_TRAJECTORIES)
    names = [_names(shard, labels=guide is not None, features=features is not None) for shard in range(len(shards))]
    missing = [shard for shard, files in enumerate(names) if not build.shards.whole(*files)]
    rolled = aggregate(
        pupil.model,
        text_N,
        start_B,
        windows.context,
        settings.horizon,
        mixed_seed(seed, number),
        sampling=SamplingSettings(max_new_tokens=1, temperature=settings.temperature),
        packed=windows.mode == "packed",
        num_tokens=pupil.num_tokens,
        batch_rows=SHARD_TRAJECTORIES,
        batches=missing,
    )
    for shard, part in zip(missing, rolled, strict=True):
        if guide is not None and labels is not None:
            _answer(build, guide, part, labels, windows, shard, mixed_seed(seed, number, shard))
        if features is not None:
            write_trunk(build.shards, "aggregated", shard, part.below, features)
        table = aggregated_table(part, number, windows.context)
        build.shards.write(_name("aggregated", shard), partial(pq.write_table, table))
        build.progress(min(len(start_B), (shard + 1) * SHARD_TRAJECTORIES), len(start_B), "trajectories")
    for files in names:
        build.shards.collect(*files)
    parts = [pq.read_table(build.dir / _name("aggregated", shard), columns=["left"]) for shard in range(len(shards))]
    left = pa.concat_tables(parts)["left"]
    build.record(predictions=len(left), left_the_text=sum(left.to_pylist()) / len(left))


def _answer(
    build: Build,
    guide: LoadedModel,
    part: Aggregated,
    labels: LabelSettings,
    windows: WindowSettings,
    shard: int,
    seed: int,
) -> None:
    """The teacher's labels of a shard, row by row as the aggregated windows."""
    width = part.target_MP.shape[1]
    batches = part.context_ML.split(labels.batch_rows)
    hidden_ME = torch.cat([next_hidden(guide.model, ids_BL.to(guide.model.device), width) for ids_BL in batches])
    generator = torch.Generator().manual_seed(seed)
    uniform_MN = torch.rand((len(hidden_ME), labels.draws), generator=generator).to(hidden_ME.device)
    weight_VE = head_weight(guide.model, guide.num_tokens)
    made = make_labels(hidden_ME, weight_VE, labels, uniform_MN)
    place = aggregated_table(part, 0, windows.context).select(["trajectory", "step"])
    write = partial(write_labels, labels=made, place=place, vocab_size=len(weight_VE))
    build.shards.write(_name("labels", shard), write)


def _names(shard: int, *, labels: bool, features: bool) -> list[str]:
    """The files of a shard."""
    kinds = ["aggregated", "labels"] if labels else ["aggregated"]
    return [_name(kind, shard) for kind in kinds] + list(trunk_names("aggregated", shard) if features else ())


def _name(kind: str, shard: int) -> str:
    return f"{kind}-{shard:05d}.parquet"
