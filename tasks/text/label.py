"""The stage `label`: the teacher's distribution after every true window, in Parquet, and the error of that form."""

from collections.abc import Callable
from functools import partial

import pyarrow as pa
import torch
from torch import Tensor

from kd_core.losses.head import Head
from kd_core.losses.lm_head import token_log_probs
from kd_core.models.policy import head_of
from kd_core.rollout.sampling import mixed_seed
from kd_core.rollout.teacher_labels import LabelSettings, label_error
from kd_core.windows.cutting import WindowSettings
from kd_core.windows.last_block import last_hidden
from kd_core.windows.train import Windows
from kd_core.windows.trunk import TrunkPrecision
from tasks.compute.device import teacher_devices
from tasks.compute.models import LoadedModel, load_artifact
from tasks.engine.settings import RuntimeSettings
from tasks.labels.files import HEAD, collect, drawn_labels, head_writer, labels_writer
from tasks.store.artifacts import Artifact
from tasks.store.files import read_json, write_json
from tasks.store.shards import Making, Shard, Sharded, Writer
from tasks.store.stage import Build, stage
from tasks.text.tokens import read_tokens
from tasks.text.window_files import window_set

SPLITS = ("train", "validation")
SHARD_WINDOWS = 4096
HELD_OUT_WINDOWS = 256  # of the validation split: what labels lose against dense is measured there


@stage
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
    """Write train- and validation-*.parquet, a row a prediction, and the head that hidden states need.

    Finished shards survive a kill.
    `features` are those of the teacher where only its last block was fine-tuned: its frozen part is not run again.
    """
    counts = {split: len(windows.targets(len(read_tokens(corpus, split)))) for split in SPLITS}
    parts = [
        Shard(_files(split, number, settings), (split, index), len(index))
        for split, count in counts.items()
        for number, index in enumerate(torch.arange(count).split(SHARD_WINDOWS))
    ]
    shards = Sharded(build, "windows", parts)
    shards.make(partial(_opens, corpus, teacher, features, windows, settings, seed, trunk_precision))
    build.shards.collect(*(name for name in shards.files if name == HEAD))
    collect(build, [name for name in shards.files if name.endswith(".parquet")], shards.size * windows.width)
    build.record(windows=shards.size)
    measured = [read_json(build.shards.dir / name) for name in shards.files if name.endswith(".json")]
    build.record(validation_loss=-sum(each["log_prob"] for each in measured) / (counts["validation"] * windows.width))
    build.record(**{name: measured[0][name] for name in ("kl_to_dense", "mass_elsewhere")})


def _opens(
    corpus: Artifact,
    teacher: Artifact,
    features: Artifact | None,
    windows: WindowSettings,
    settings: LabelSettings,
    seed: int,
    trunk_precision: TrunkPrecision,
    runtime: RuntimeSettings,
) -> Callable[[tuple[str, Tensor]], Making]:
    """The teacher and the windows, opened once a process; then what makes the labels of some windows of a split."""
    loaded = load_artifact(teacher, teacher_devices(runtime))
    head = head_of(loaded.model, loaded.num_tokens)
    sets = {split: window_set(corpus, split, windows, features, None, trunk_precision) for split in SPLITS}
    targets = {split: windows.targets(len(read_tokens(corpus, split))) for split in SPLITS}

    @torch.no_grad()
    def work(shard: tuple[str, Tensor]) -> Making:
        yield 0
        split, index = shard
        position_M = (targets[split][index, None] + torch.arange(windows.width)).flatten()
        place = pa.table({"position": pa.array(position_M.numpy(), pa.int32())})
        drawn_by = mixed_seed(mixed_seed(seed, SPLITS.index(split)), int(index[0]))
        hidden_ME = _hidden(loaded, sets[split], index, settings.batch_rows)
        writers: list[Writer] = [labels_writer(hidden_ME, head, settings, drawn_by, place)]
        if split == "validation":
            measured = {"log_prob": _log_prob(hidden_ME, head, sets[split].target_MP[index])}
            if index[0] == 0:
                held_out = hidden_ME[: HELD_OUT_WINDOWS * windows.width]
                measured |= _lost(held_out, head, settings, mixed_seed(seed, len(SPLITS)))
            writers.append(partial(write_json, record=measured))
        elif index[0] == 0 and settings.kind == "hidden":
            writers.append(head_writer(head))
        return writers

    return work


def _hidden(teacher: LoadedModel, windows: Windows, index: Tensor, batch_rows: int) -> Tensor:
    """The teacher's final states after some windows. Shapes: (B,) row numbers -> (B*P, E)."""
    batches = index.split(batch_rows)
    return torch.cat([last_hidden(teacher.model, windows.below.of(teacher.model, batch)) for batch in batches])


def _log_prob(hidden_ME: Tensor, head: Head, target_MP: Tensor) -> float:
    """The teacher's own log-probability of what follows in the text, summed, in nats."""
    return float(token_log_probs(hidden_ME, head, target_MP.flatten().to(hidden_ME.device)).sum())


def _lost(hidden_ME: Tensor, head: Head, settings: LabelSettings, seed: int) -> dict[str, float]:
    """What labels lose against dense ones."""
    error = label_error(drawn_labels(hidden_ME, head, settings, seed), hidden_ME, head)
    return {"kl_to_dense": error.divergence, "mass_elsewhere": error.missed}


def _files(split: str, number: int, settings: LabelSettings) -> tuple[str, ...]:
    """The files of a shard; of the validation split also what is measured there, which is no part of the artifact."""
    labels = f"{split}-{number:05d}.parquet"
    if split == "validation":
        return labels, f"{split}-{number:05d}.json"
    return (labels, HEAD) if number == 0 and settings.kind == "hidden" else (labels,)
