"""The stage `fine_tune`: the teacher learns the transfer set, so that its corrections are in the right style."""

from kd_core.train.ranks import Ranks
from kd_core.windows.cutting import WindowSettings
from kd_core.windows.last_block import Trainable, set_trainable
from kd_core.windows.train import WindowTrainingSettings, train_windows, updates_per_epoch, window_loss
from kd_core.windows.trunk import TrunkPrecision
from tasks.compute.device import device_of
from tasks.compute.models import load_artifact
from tasks.compute.training import run_training
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage, trains
from tasks.text.window_files import window_set


@trains()
@stage
def fine_tune(
    build: Build,
    corpus: Artifact,
    model: Artifact,
    features: Artifact | None,
    trainable: Trainable,
    windows: WindowSettings,
    settings: WindowTrainingSettings,
    seed: int,
    trunk_precision: TrunkPrecision = "float32",
) -> None:
    """Next-token training on the transfer set's windows: model/ and training_log.parquet."""
    loaded = load_artifact(model, device_of(build.runtime))
    loaded.model.float()
    set_trainable(loaded.model, trainable)
    train, held_out = (
        window_set(corpus, split, windows, features, None, trunk_precision) for split in ("train", "validation")
    )
    ranks = Ranks.here()
    before = window_loss(loaded.model, held_out, 1.0, num_tokens=loaded.num_tokens, ranks=ranks)["nll"]
    run_training(
        build,
        loaded,
        settings.optimizer,
        lambda state: train_windows(state, [train], held_out, settings, seed, num_tokens=loaded.num_tokens),
        settings.epochs * updates_per_epoch([train], settings),
    )
    after = window_loss(loaded.model, held_out, 1.0, num_tokens=loaded.num_tokens, ranks=ranks)["nll"]
    build.record(validation_loss_before=before, validation_loss=after, windows=len(train))
