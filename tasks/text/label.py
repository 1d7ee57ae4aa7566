"""The stage `label`: the teacher's distribution after every true window, in Parquet, and the error of that form."""

import pyarrow as pa
import torch
from torch import Tensor

from kd_core.losses.lm_head import token_log_probs
from kd_core.models.policy import head_of
from kd_core.rollout.sampling import mixed_seed
from kd_core.rollout.teacher_labels import LabelSettings, label_error
from kd_core.windows.cutting import WindowSettings
from kd_core.windows.last_block import last_hidden
from kd_core.windows.train import Windows
from kd_core.windows.trunk import TrunkPrecision
from tasks.compute.device import device_of
from tasks.compute.models import LoadedModel, load_artifact
from tasks.labels.files import collect, drawn_labels, labels_writer
from tasks.store.artifacts import Artifact
from tasks.store.shards import Shard, Sharded
from tasks.store.stage import Build, stage
from tasks.text.tokens import read_tokens
from tasks.text.window_files import window_set

SPLITS = ("train", "validation")
SHARD_WINDOWS = 4096
HELD_OUT_WINDOWS = 256  # of the validation split: what labels lose against dense is measured there


@stage
@torch.no_grad()
def label(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    features: Artifact | None,
    windows: WindowSettings,
    settings: LabelSettings,
    seed: int,
    trunk_precision: TrunkPrecision = "float32",
) -> None:
    """Write train- and validation-*.parquet, a row a prediction; finished shards survive a kill.

    `features` are those of the teacher where only its last block was fine-tuned: its frozen part is not run again.
    """
    loaded = load_artifact(teacher, device_of(build.runtime))
    head = head_of(loaded.model, loaded.num_tokens)
    sets = {split: window_set(corpus, split, windows, features, None, trunk_precision) for split in SPLITS}
    targets = {split: windows.targets(len(read_tokens(corpus, split))) for split in SPLITS}
    parts = [
        Shard((f"{split}-{number:05d}.parquet",), (split, index), len(index))
        for split, each in sets.items()
        for number, index in enumerate(torch.arange(len(each)).split(SHARD_WINDOWS))
    ]
    shards = Sharded(build, "windows", parts)
    for shard in shards.missing():
        split, index = shard.of
        position_M = (targets[split][index, None] + torch.arange(windows.width)).flatten()
        place = pa.table({"position": pa.array(position_M.numpy(), pa.int32())})
        drawn_by = mixed_seed(mixed_seed(seed, SPLITS.index(split)), int(index[0]))
        hidden_ME = _hidden(loaded, sets[split], index, settings.batch_rows)
        shards.write(shard, labels_writer(hidden_ME, head, settings, drawn_by, place))
    predictions = sum(each.target_MP.numel() for each in sets.values())
    collect(build, shards.files, predictions)
    build.record(windows=shards.size)
    _measure(build, loaded, sets["validation"], settings, mixed_seed(seed, len(SPLITS)))


def _hidden(teacher: LoadedModel, windows: Windows, index: Tensor, batch_rows: int) -> Tensor:
    """The teacher's final states after some windows. Shapes: (B,) row numbers -> (B*P, E)."""
    batches = index.split(batch_rows)
    return torch.cat([last_hidden(teacher.model, windows.below.of(teacher.model, batch)) for batch in batches])


def _measure(build: Build, teacher: LoadedModel, windows: Windows, settings: LabelSettings, seed: int) -> None:
    """The teacher's own cross-entropy on the validation text, and what its labels lose on a slice of it."""
    head, total = head_of(teacher.model, teacher.num_tokens), 0.0
    for index in torch.arange(len(windows)).split(SHARD_WINDOWS):
        hidden_ME = _hidden(teacher, windows, index, settings.batch_rows)
        target_M = windows.target_MP[index].flatten().to(hidden_ME.device)
        total -= float(token_log_probs(hidden_ME, head, target_M).sum())
    hidden_ME = _hidden(teacher, windows, torch.arange(min(HELD_OUT_WINDOWS, len(windows))), settings.batch_rows)
    error = label_error(drawn_labels(hidden_ME, head, settings, seed), hidden_ME, head)
    build.record(
        validation_loss=total / windows.target_MP.numel(), kl_to_dense=error.divergence, mass_elsewhere=error.missed
    )
