"""The stage `pre_distill`: the student learns the teacher's outputs (SeqKD), from where every method goes on."""

from dataclasses import replace

import torch

from kd_core.models.backends.lora import add_adapter
from kd_core.models.loading import check_same_tokenizer, load_model, load_tokenizer, read_configs
from kd_core.models.prompts import Prompts
from kd_core.models.shapes import build_model
from kd_core.models.special_ids import also_ends, special_ids, vocabulary_size
from kd_core.train.ranks import Ranks
from kd_core.train.supervised import Pairs, SupervisedSettings, cross_entropy, num_updates, train_supervised
from tasks.compute.device import device_of, teacher_devices
from tasks.compute.models import LoadedModel, load_artifact, model_location, shared_out
from tasks.compute.reference import reference_to, remark_on
from tasks.compute.served import ANSWERS
from tasks.compute.teacher_check import STUDENT, warn_if_no_better
from tasks.compute.training import run_training
from tasks.pairs.inputs import prompt_rows, read_split, reference_pairs, seqkd_pairs
from tasks.pairs.labels.reading import output_labels
from tasks.pairs.student import StudentSettings
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage, trains


@trains()
@stage
def pre_distill(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    outputs: Artifact,
    student: StudentSettings,
    prompt: Prompts,
    settings: SupervisedSettings,
    seed: int,
    start: Artifact | None = None,
    labels: Artifact | None = None,
) -> None:
    """Train the student on the teacher's outputs: model/ or adapter/, and training_log.parquet.

    start: the student's weights, where a stage has had to make them. labels: the teacher's of its outputs, or none.
    """
    runtime, device = build.runtime, device_of(build.runtime)
    loaded = untrained_student(student, teacher, seed, device, start, sharded=runtime.shares_out("student"))
    remark_on(build, student)
    pairs = seqkd_pairs(loaded, prompt, corpus, outputs, settings)
    if labels is not None:
        pairs = replace(pairs, labels=output_labels(build, labels, outputs))
    held_out = read_split(corpus, "validation", ("source", "target"), settings.validation_rows)
    validation = reference_pairs(loaded, prompt, held_out, settings)
    losses: dict[str, float] = {}
    if student.name is not None or start is not None:  # it may be as good as its teacher already; a shape is random
        before = cross_entropy(loaded.model, validation, settings.validation_rows, Ranks.here())
        build.record(validation_loss_before=before)
        losses[f"{STUDENT} (before it was taught anything)"] = before
    log = run_training(
        build,
        loaded,
        settings.optimizer,
        lambda state: train_supervised(state, pairs, validation, settings, seed, num_tokens=loaded.num_tokens),
        num_updates(pairs, settings, seed),
    )
    after = log[-1].values["validation_loss"]
    answers, in_parts = build.checkpoints.dir / ANSWERS, runtime.shares_out("teacher")
    teacher_model = load_artifact(teacher, teacher_devices(runtime), beside=loaded, answers=answers, sharded=in_parts)
    prompted = prompt_rows(teacher_model, prompt.teacher, held_out["source"], settings.max_source_tokens)
    told = Pairs(prompted, validation.target)
    teacher_nll = cross_entropy(teacher_model.model, told, settings.validation_rows, Ranks.here())
    parameters = loaded.model.num_parameters()
    if student.lora is not None:
        build.record(trained_parameters=loaded.model.num_parameters(only_trainable=True))
        parameters -= build.stats["trained_parameters"]  # merged, they are none more
    build.record(parameters=parameters, validation_loss=after, teacher_validation_loss=teacher_nll)
    warn_if_no_better(build, teacher_nll, {STUDENT: after} | losses, "validation references")


def untrained_student(
    settings: StudentSettings,
    teacher: Artifact,
    seed: int,
    device: torch.device,
    start: Artifact | None = None,
    *,
    sharded: bool = False,
) -> LoadedModel:
    """The untrained student: loaded, made to its shape over the teacher's tokenizer, or the teacher's.

    In float32; under an adapter, which is, in the precision that it is loaded in. Raises ValueError if it reads other
    tokens than the teacher, or lacks a matrix that is to be adapted. sharded: see `shared_out`; without an adapter.
    """
    made = teacher if start is None and settings.from_ is not None else start

    def load(device: torch.device) -> LoadedModel:
        loaded = _start(settings, teacher, seed, device, made)
        return loaded if settings.lora else replace(loaded, model=loaded.model.float())

    loaded = shared_out(load, device) if sharded else load(device)
    if settings.lora is None:
        return loaded
    add_adapter(loaded.model, settings.lora, seed)
    base = reference_to(settings) if made is None else {"stage": made.stage, "key": made.key}
    return replace(loaded, base=base)


def _start(
    settings: StudentSettings, teacher: Artifact, seed: int, device: torch.device, made: Artifact | None
) -> LoadedModel:
    """The student's weights; those of `made`, where some stage has made them."""
    location, revision, _ = model_location(teacher)
    tokenizer = load_tokenizer(location, revision)
    if settings.shape is not None:
        model = build_model(settings.shape, vocabulary_size(tokenizer), seed, eos_id=tokenizer.eos_token_id)
        return LoadedModel(model.to(device), tokenizer)
    name, commit, dtype = settings.path or settings.name, settings.commit, settings.dtype
    if made is not None:
        name, commit, dtype = model_location(made)
    assert name is not None  # the settings' own check
    own = load_tokenizer(name, commit)
    check_same_tokenizer(tokenizer, own)
    if not own.chat_template:  # a base model that is to read what its teacher does
        own.chat_template = tokenizer.chat_template
    model = load_model(name, commit, dtype, device, own)
    also_ends(model, special_ids(*read_configs(location, revision), tokenizer, str(location)).ends)
    return LoadedModel(model, own)
