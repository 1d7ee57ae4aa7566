"""The stage `features`: what the frozen part of a model makes of every window, once and for all."""

import torch

from kd_core.windows.gpt_neo import Trunk, trunk
from kd_core.windows.windows import WindowSettings, contexts
from tasks.compute import device_of, load_artifact
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage
from tasks.text.tokens import read_tokens
from tasks.text.window_files import FeatureDType, trunk_names, write_trunk

SHARD_WINDOWS = 256  # a shard is written whole, and never again
BATCH_WINDOWS = 32


@stage
@torch.no_grad()
def features(build: Build, corpus: Artifact, model: Artifact, windows: WindowSettings, dtype: FeatureDType) -> None:
    """Write train- and validation-{normed,last}-*.npy; finished shards survive a kill."""
    texts = {split: read_tokens(corpus, split) for split in ("train", "validation")}
    targets = {split: windows.targets(len(text)) for split, text in texts.items()}
    total, done, size = sum(map(len, targets.values())), 0, 0
    loaded = load_artifact(model, device_of(build.runtime)).model
    for split, text_N in texts.items():
        for number, target_M in enumerate(targets[split].split(SHARD_WINDOWS)):
            build.progress(done, total, "windows")
            done += len(target_M)
            names = trunk_names(split, number)
            if not build.shards.whole(*names):
                batches = contexts(text_N, target_M, windows.context, windows.width).split(BATCH_WINDOWS)
                parts = [trunk(loaded, ids_BL.to(loaded.device), windows.width) for ids_BL in batches]
                write_trunk(build.shards, split, number, Trunk.cat(parts), dtype)
            size += build.shards.collect(*names)
    build.record(windows=total, bytes_per_window=size / total)
