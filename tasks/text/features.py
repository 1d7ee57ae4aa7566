"""The stage `features`: the states of a model's frozen part for every window, computed once."""

import torch

from kd_core.windows.cutting import WindowSettings, contexts
from kd_core.windows.last_block import trunk
from kd_core.windows.trunk import Trunk, TrunkPrecision
from tasks.compute.device import device_of
from tasks.compute.models import load_artifact
from tasks.store.artifacts import Artifact
from tasks.store.shards import Shard, Sharded
from tasks.store.stage import Build, stage
from tasks.text.tokens import read_tokens
from tasks.text.window_files import FeatureDType, trunk_names, trunk_writers

SHARD_WINDOWS = 256
BATCH_WINDOWS = 32


@stage
@torch.no_grad()
def features(
    build: Build,
    corpus: Artifact,
    model: Artifact,
    windows: WindowSettings,
    dtype: FeatureDType,
    trunk_precision: TrunkPrecision = "float32",
) -> None:
    """Write train- and validation-{normed,last}-*.npy; finished shards survive a kill."""
    texts = {split: read_tokens(corpus, split) for split in ("train", "validation")}
    parts = [
        Shard(trunk_names(split, number), (split, target_M), len(target_M))
        for split, text_N in texts.items()
        for number, target_M in enumerate(windows.targets(len(text_N)).split(SHARD_WINDOWS))
    ]
    shards = Sharded(build, "windows", parts)
    loaded = load_artifact(model, device_of(build.runtime)).model
    for shard in shards.missing():
        split, target_M = shard.of
        batches = contexts(texts[split], target_M, windows.context, windows.width).split(BATCH_WINDOWS)
        frozen = [trunk(loaded, ids_BL.to(loaded.device), windows.width, trunk_precision) for ids_BL in batches]
        shards.write(shard, *trunk_writers(Trunk.cat(frozen), dtype))
    build.record(windows=shards.size, bytes_per_window=build.shards.collect(*shards.files) / shards.size)
