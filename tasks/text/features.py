"""The stage `features`: the states of a model's frozen part for every window, computed once."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kd_core.windows.cutting import WindowSettings, contexts
from kd_core.windows.last_block import trunk
from kd_core.windows.trunk import Trunk, TrunkPrecision
from tasks.compute.device import device_of
from tasks.compute.models import load_artifact
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Artifact
from tasks.store.shards import Making, Shard, Sharded
from tasks.store.stage import Build, stage
from tasks.text.tokens import read_tokens
from tasks.text.window_files import FeatureDType, trunk_names, trunk_writers

SPLITS = ("train", "validation")
SHARD_WINDOWS = 256
BATCH_WINDOWS = 32


@stage
def features(
    build: Build,
    corpus: Artifact,
    model: Artifact,
    windows: WindowSettings,
    dtype: FeatureDType,
    trunk_precision: TrunkPrecision = "float32",
) -> None:
    """Write train- and validation-{normed,last}-*.npy; finished shards survive a kill."""
    parts = [
        Shard(trunk_names(split, number), (split, target_M), len(target_M))
        for split in SPLITS
        for number, target_M in enumerate(windows.targets(len(read_tokens(corpus, split))).split(SHARD_WINDOWS))
    ]
    shards = Sharded(build, "windows", parts)
    shards.make(partial(_opens, corpus, model, windows, dtype, trunk_precision))
    build.record(windows=shards.size, bytes_per_window=build.shards.collect(*shards.files) / shards.size)


def _opens(
    corpus: Artifact,
    model: Artifact,
    windows: WindowSettings,
    dtype: FeatureDType,
    trunk_precision: TrunkPrecision,
    runtime: RuntimeSettings,
) -> Callable[[tuple[str, Tensor]], Making]:
    """The model and the texts, opened once a process; then what makes the features of some windows of a split."""
    loaded = load_artifact(model, device_of(runtime)).model
    texts = {split: read_tokens(corpus, split) for split in SPLITS}

    @torch.no_grad()
    def work(shard: tuple[str, Tensor]) -> Making:
        split, target_M = shard
        frozen: list[Trunk] = []
        for ids_BL in contexts(texts[split], target_M, windows.context, windows.width).split(BATCH_WINDOWS):
            yield len(frozen) * BATCH_WINDOWS
            frozen.append(trunk(loaded, ids_BL.to(loaded.device), windows.width, trunk_precision))
        return trunk_writers(Trunk.cat(frozen), dtype)

    return work
