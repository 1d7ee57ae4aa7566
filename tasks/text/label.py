"""The stage `label`: the teacher's distribution after every true window, in Parquet, and what keeping it so loses."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from kd_core.losses.lm_head import token_log_probs
from kd_core.training import mixed_seed
from kd_core.windows.gpt_neo import head_weight, last_hidden
from kd_core.windows.teacher_labels import LabelSettings, label_error, make_labels
from kd_core.windows.train import Windows
from kd_core.windows.windows import WindowSettings
from tasks.compute import LoadedModel, device_of, load_artifact
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage
from tasks.text.label_files import write_labels
from tasks.text.tokens import read_tokens
from tasks.text.window_files import window_set

SPLITS = ("train", "validation")
SHARD_WINDOWS = 4096  # a shard is written whole, and never again
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
) -> None:
    """Write train- and validation-*.parquet, a row a prediction; finished shards survive a kill.

    `features` are those of the teacher where only its last block was fine-tuned: its frozen part is not run again.
    """
    loaded = load_artifact(teacher, device_of(build.runtime))
    sets = {split: window_set(corpus, split, windows, features, None) for split in SPLITS}
    total, done, size = sum(map(len, sets.values())), 0, 0
    for split, each in sets.items():
        target_M = windows.targets(len(read_tokens(corpus, split)))
        reader = Reader(loaded, each, settings, mixed_seed(seed, SPLITS.index(split)))
        for number, index in enumerate(torch.arange(len(each)).split(SHARD_WINDOWS)):
            build.progress(done, total, "windows")
            done += len(index)
            name = f"{split}-{number:05d}.parquet"
            if not build.shards.whole(name):
                position_M = (target_M[index, None] + torch.arange(windows.width)).flatten()
                place = pa.table({"position": pa.array(position_M.numpy(), pa.int32())})
                build.shards.write(name, reader.writer(index, place))
            size += build.shards.collect(name)
    predictions = sum(each.target_MP.numel() for each in sets.values())
    build.record(windows=total, bytes_per_token=size / predictions)
    _measure(build, Reader(loaded, sets["validation"], settings, mixed_seed(seed, len(SPLITS))))


@dataclass(frozen=True)
class Reader:
    """The teacher reads windows. A window's random numbers depend on the seed and its shard alone."""

    teacher: LoadedModel
    windows: Windows
    settings: LabelSettings
    seed: int

    def hidden(self, index: Tensor) -> Tensor:
        """Final states. Shapes: (B,) windows -> (B*P, E)."""
        model = self.teacher.model
        batches = index.split(self.settings.batch_rows)
        return torch.cat([last_hidden(model, self.windows.below.of(model, batch)) for batch in batches])

    @property
    def weight_VE(self) -> Tensor:
        """The head, down to the tokens that the tokenizer can name."""
        return head_weight(self.teacher.model, self.teacher.num_tokens)

    def writer(self, index: Tensor, place: pa.Table) -> Callable[[Path], None]:
        """What writes the labels of some windows as a Parquet file."""
        hidden_ME = self.hidden(index)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, int(index[0])))
        uniform_MN = torch.rand((len(hidden_ME), self.settings.draws), generator=generator)
        labels = make_labels(hidden_ME, self.weight_VE, self.settings, uniform_MN.to(hidden_ME.device))
        return partial(write_labels, labels=labels, place=place, vocab_size=len(self.weight_VE))


def _measure(build: Build, reader: Reader) -> None:
    """The teacher's own cross-entropy on the validation text, and what its labels lose on a slice of it."""
    total = 0.0
    for index in torch.arange(len(reader.windows)).split(SHARD_WINDOWS):
        hidden_ME = reader.hidden(index)
        target_M = reader.windows.target_MP[index].flatten().to(hidden_ME.device)
        total -= float(token_log_probs(hidden_ME, reader.weight_VE, target_M).sum())
    hidden_ME = reader.hidden(torch.arange(min(HELD_OUT_WINDOWS, len(reader.windows))))
    generator = torch.Generator().manual_seed(reader.seed)
    uniform_MN = torch.rand((len(hidden_ME), reader.settings.draws), generator=generator).to(hidden_ME.device)
    error = label_error(
        make_labels(hidden_ME, reader.weight_VE, reader.settings, uniform_MN), hidden_ME, reader.weight_VE
    )
    build.record(
        validation_loss=total / reader.windows.target_MP.numel(),
        kl_to_dense=error.divergence,
        mass_elsewhere=error.missed,
    )
