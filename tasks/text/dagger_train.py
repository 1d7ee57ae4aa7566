"""The stage `dagger_train`: one round's training, on the true windows and on what all rounds before have added."""

from collections.abc import Mapping

import torch

from kd_core.losses.head import Head
from kd_core.losses.soft_targets import TeacherLabels
from kd_core.models.policy import laid_out
from kd_core.rollout.sampling import mixed_seed
from kd_core.train.ranks import Ranks
from kd_core.windows.cutting import WindowSettings
from kd_core.windows.last_block import Trainable, set_trainable
from kd_core.windows.train import WindowTrainingSettings, train_windows, updates_per_epoch, window_loss
from kd_core.windows.trunk import TrunkPrecision
from tasks.compute.device import device_of
from tasks.compute.models import load_artifact, lone_head
from tasks.compute.teacher_check import STUDENT, warn_if_no_better
from tasks.compute.training import run_training
from tasks.labels.files import HEAD, open_labels, read_head
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage, trains
from tasks.text.aggregated_files import aggregated_set
from tasks.text.window_files import window_set


@trains()
@stage
def dagger_train(
    build: Build,
    corpus: Artifact,
    teacher: Artifact | None,
    student: Artifact,
    features: Artifact | None,
    labels: Artifact | None,
    added: Mapping[str, Artifact],
    trainable: Trainable,
    windows: WindowSettings,
    settings: WindowTrainingSettings,
    number: int,
    seed: int,
    trunk_precision: TrunkPrecision = "float32",
) -> None:
    """Train one round by Eq. 5: model/ and training_log.parquet.

    No teacher is loaded: `teacher` is given where labels are hidden states, and its head lies beside those.
    """
    device, ranks = device_of(build.runtime), Ranks.here()
    loaded = load_artifact(student, device)
    loaded.model.float()
    set_trainable(loaded.model, trainable)
    head = None if teacher is None or labels is None else _head(labels, teacher, device, loaded.num_tokens)
    is_rounded = trunk_precision == "bfloat16"  # else products stay as they always were, to the last digit
    if head is not None and is_rounded:
        head = laid_out(head)

    def kept(artifact: Artifact | None, name: str) -> TeacherLabels | None:
        if labels is None or artifact is None:
            return None
        files, scratch = sorted(artifact.path.glob(f"{name}-*.parquet")), build.checkpoints.dir / "labels"
        with ranks.first_alone():
            return open_labels(files, scratch, f"{artifact.key}-{name}", head, fill=ranks.is_first)

    train = [window_set(corpus, "train", windows, features, kept(labels, "train"), trunk_precision)]
    stored = features is not None
    train += [
        aggregated_set(each, windows, kept(each, "labels"), trunk_precision, stored=stored) for each in added.values()
    ]
    held_out = window_set(corpus, "validation", windows, features, kept(labels, "validation"), trunk_precision)
    model, num_tokens = loaded.model, loaded.num_tokens
    before = window_loss(model, held_out, settings.alpha, num_tokens=num_tokens, ranks=ranks)
    run_training(
        build,
        loaded,
        settings.optimizer,
        lambda s: train_windows(
            s, train, held_out, settings, mixed_seed(seed, number), num_tokens=num_tokens, lay_out_head=is_rounded
        ),
        settings.epochs * updates_per_epoch(train, settings),
    )
    after = window_loss(model, held_out, settings.alpha, num_tokens=num_tokens, ranks=ranks)
    build.record(
        true_windows=len(train[0]),
        added_windows=sum(map(len, train[1:])),
        validation_loss_before=before["loss"],
        validation_loss=after["loss"],
        validation_nll_before=before["nll"],
        validation_nll=after["nll"],
    )
    if labels is not None:
        teacher_nll = float(labels.manifest().stats["validation_loss"])
        build.record(teacher_validation_nll=teacher_nll)
        warn_if_no_better(build, teacher_nll, {STUDENT: min(before["nll"], after["nll"])}, "validation text")


def _head(labels: Artifact, teacher: Artifact, device: torch.device, num_tokens: int) -> Head:
    """The teacher's head: beside the labels, or, where these were made before that was so, taken from the teacher."""
    kept = labels.path / HEAD
    return read_head(kept, device) if kept.is_file() else lone_head(teacher, device, num_tokens)
