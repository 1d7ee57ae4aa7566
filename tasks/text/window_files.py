"""Windows on disk: what the frozen part of a model makes of them, and the windows that a stage trains on.

Features are .npy files that are memory-mapped, a pair a shard: training reads the rows of a batch, so memory does not
grow with the corpus.

Shape legend: M windows, B windows of a batch, P predictions of a window, X positions that they look back on, D model
width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kd_core.losses.soft_targets import TeacherLabels
from kd_core.models.policy import Model
from kd_core.windows.cutting import WindowSettings, contexts, followers
from kd_core.windows.train import Below, Tokens, Windows
from kd_core.windows.trunk import Trunk, TrunkPrecision
from tasks.store.artifacts import Artifact
from tasks.store.shards import Writer
from tasks.text.tokens import read_tokens

FeatureDType = Literal["float16", "float32"]


@dataclass(frozen=True)
class StoredTrunk:
    """Memory-mapped features of M windows, in shards."""

    behind: Sequence[Any]  # memory maps of (rows, X, D)
    last: Sequence[Any]  # and (rows, P, D)

    @classmethod
    def open(cls, directory: Path, name: str) -> "StoredTrunk":
        """The shards called `name` in a directory, in order."""
        found = {part: sorted(directory.glob(f"{name}-{part}-*.npy")) for part in ("normed", "last")}
        return cls(*([np.load(path, mmap_mode="r") for path in found[part]] for part in ("normed", "last")))

    def of(self, model: Model, index_B: Tensor) -> Trunk:
        """See `kd_core.windows.train.Below`. The rows are read from disk, or from what the system keeps of it."""
        sizes = np.array([len(shard) for shard in self.behind])
        shard_B = np.searchsorted(np.cumsum(sizes), index_B.numpy(), side="right")
        row_B = index_B.numpy() - (np.cumsum(sizes) - sizes)[shard_B]

        def gather(shards: Sequence[Any]) -> Tensor:
            out = np.empty((len(row_B), *shards[0].shape[1:]), dtype=shards[0].dtype)
            for number in np.unique(shard_B):
                chosen = shard_B == number
                out[chosen] = shards[number][row_B[chosen]]
            return torch.from_numpy(out).to(model.device, model.dtype)

        return Trunk(gather(self.behind), gather(self.last))


def trunk_writers(below: Trunk, dtype: FeatureDType) -> Iterator[Writer]:
    """What writes each of the files of a shard of features. Raises ValueError for states that a dtype cannot hold."""
    for tensor in (below.behind_BXD, below.last_BPD):
        kept = tensor.to("cpu", getattr(torch, dtype))
        if not kept.isfinite().all():
            raise ValueError(
                f"states up to {tensor.abs().max():.3g} do not fit in {dtype}\nset method.features=float32"
            )
        yield partial(_save, kept.numpy())


def _save(values: Any, path: Path) -> None:
    with path.open("wb") as file:  # np.save would add a suffix to the name
        np.save(file, values, allow_pickle=False)


def trunk_names(name: str, number: int) -> tuple[str, str]:
    """The files of a shard of features: both parts of a `Trunk`, the first called by what GPT-Neo keeps there."""
    return f"{name}-normed-{number:05d}.npy", f"{name}-last-{number:05d}.npy"


def window_set(
    corpus: Artifact,
    split: str,
    settings: WindowSettings,
    features: Artifact | None,
    labels: TeacherLabels | None,
    precision: TrunkPrecision,
) -> Windows:
    """The true windows of a split, with features where they are kept and labels where there are any.

    precision: of a trunk that is not kept
    """
    text_N = read_tokens(corpus, split)
    target_M = settings.targets(len(text_N))
    below: Below
    if features is not None:
        below = StoredTrunk.open(features.path, split)
    else:
        below = Tokens(contexts(text_N, target_M, settings.context, settings.width), settings.width, precision)
    return Windows(below, followers(text_N, target_M, settings.width), labels)
