"""The stage `pre_distill`: SeqKD, so that the student's samples mean something before reinforcement learning begins."""

import torch

from kd_core.batching import TokenRows
from kd_core.models.loading import ModelSettings, check_same_tokenizer, load_model, load_tokenizer, save_model
from kd_core.models.shapes import build_model
from kd_core.models.special_ids import vocabulary_size
from kd_core.train.supervised import Pairs, SupervisedSettings, cross_entropy, num_updates, train_supervised
from kd_core.training import TrainState
from tasks.compute.device import device_of
from tasks.compute.models import LoadedModel, load_artifact, model_location
from tasks.compute.reference import remark_on
from tasks.compute.teacher_check import STUDENT, warn_if_no_better
from tasks.compute.training import run_training, write_log
from tasks.pairs.inputs import prompt_rows, written_outputs
from tasks.pairs.splits import read_split
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage


@stage
def pre_distill(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    outputs: Artifact,
    student: ModelSettings,
    prompt: str,
    settings: SupervisedSettings,
    seed: int,
) -> None:
    """Train the student on the teacher's outputs: model/ and training_log.parquet. The student reads the raw source."""
    device = device_of(build.runtime)
    loaded = student_model(student, teacher, seed, device)
    remark_on(build, student)
    pairs = seqkd_pairs(loaded, corpus, outputs, settings)
    held_out = read_split(corpus, "validation", ("source", "target"), settings.validation_rows)
    targets = TokenRows.targets(loaded.tokenizer, held_out["target"], settings.max_target_tokens)
    raw = TokenRows.encode(loaded.tokenizer, held_out["source"], settings.max_source_tokens)
    losses: dict[str, float] = {}
    if student.name is not None:  # a described one starts at random; this one may be as good as its teacher already
        before = cross_entropy(loaded.model, Pairs(raw, targets), settings.validation_rows)
        build.record(validation_loss_before=before)
        losses[f"{STUDENT} (before it was taught anything)"] = before
    state = TrainState.start(loaded.model, settings.optimizer)
    log = run_training(
        build,
        state,
        lambda s: train_supervised(s, pairs, Pairs(raw, targets), settings, seed),
        num_updates(pairs, settings, seed),
    )
    save_model(loaded.model, loaded.tokenizer, build.dir / "model")
    write_log(build.dir / "training_log.parquet", log)

    teacher_sources = prompt_rows(loaded, prompt, held_out["source"], settings.max_source_tokens)
    after = log[-1].values["validation_loss"]
    teacher_nll = _teacher_nll(teacher, Pairs(teacher_sources, targets), settings, device)
    build.record(parameters=loaded.model.num_parameters(), validation_loss=after, teacher_validation_loss=teacher_nll)
    warn_if_no_better(build, teacher_nll, {STUDENT: after} | losses, "validation references")


def student_model(settings: ModelSettings, teacher: Artifact, seed: int, device: torch.device) -> LoadedModel:
    """The untrained student: loaded, or made to its shape over the teacher's tokenizer. It trains in float32.

    Raises ValueError if it reads other tokens than the teacher.
    """
    location, revision, _ = model_location(teacher)
    tokenizer = load_tokenizer(location, revision)
    if settings.shape is not None:
        model = build_model(settings.shape, vocabulary_size(tokenizer), seed, eos_id=tokenizer.eos_token_id)
        return LoadedModel(model.to(device), tokenizer)
    name = settings.directory or settings.name
    assert name is not None  # the settings' own check
    own = load_tokenizer(name, settings.commit)
    check_same_tokenizer(tokenizer, own)
    return LoadedModel(load_model(name, settings.commit, settings.dtype, device, own).float(), own)


def seqkd_pairs(loaded: LoadedModel, corpus: Artifact, outputs: Artifact, settings: SupervisedSettings) -> Pairs:
    """Raw sources with the teacher's outputs, token by token as it wrote them."""
    sources, written = written_outputs(corpus, outputs)
    targets = [ids[: settings.max_target_tokens] for ids in written]
    return Pairs(TokenRows.encode(loaded.tokenizer, sources, settings.max_source_tokens), TokenRows.of(targets))


def _teacher_nll(teacher: Artifact, pairs: Pairs, settings: SupervisedSettings, device: torch.device) -> float:
    return cross_entropy(load_artifact(teacher, device).model, pairs, settings.validation_rows)
