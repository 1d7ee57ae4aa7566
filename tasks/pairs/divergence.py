"""The stage `divergence`: forward KL, reverse KL, JS or GKD, on the teacher's outputs and the student's own."""

from kd_core.models.prompts import Prompts
from kd_core.models.token_rows import TokenRows
from kd_core.train.divergence import DivergenceSettings, Transfer, reads_outputs, student_writes, train_divergence
from tasks.compute.device import teacher_devices
from tasks.compute.models import load_alone, load_pair
from tasks.compute.served import ANSWERS
from tasks.compute.training import last_validation, mean_of_last_tenth, run_training
from tasks.pairs.inputs import Pair, both_read, read_sources, validation_sources, written_outputs
from tasks.pairs.labels.reading import output_labels
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage, trains


@trains()
@stage
def divergence(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    outputs: Artifact,
    student: Artifact,
    prompt: Prompts,
    settings: DivergenceSettings,
    seed: int,
    labels: Artifact | None = None,
    top_k: int = 0,
) -> None:
    """Train the pre-distilled student to the teacher's distributions: model/ and training_log.parquet.

    labels: the teacher's of its outputs, or none. A teacher of whom nothing else is wanted is never loaded. top_k: how
    many of its likeliest tokens a teacher behind a server is asked for, of what the student writes.
    """
    devices, limit = teacher_devices(build.runtime), settings.max_source_tokens
    kept = None if labels is None else output_labels(build, labels, outputs, teacher)
    pair: Pair
    if kept is None or student_writes(settings):
        pair = load_pair(teacher, student, devices, build.checkpoints.dir / ANSWERS, build.runtime.sharded)
    else:
        pair = None, load_alone(student, teacher, devices[0], build.runtime.sharded)
    if reads_outputs(settings):
        texts, written = written_outputs(corpus, outputs)
        train = Transfer(both_read(pair, prompt, texts, limit), TokenRows.of(written), kept, top_k)
    else:
        train = Transfer(read_sources(corpus, "train", pair, prompt, limit), None, top_k=top_k)
    validation = validation_sources(corpus, pair, prompt, settings)
    student_model, num_tokens = pair[1], pair[1].num_tokens
    judge = None if pair[0] is None else pair[0].model
    log = run_training(
        build,
        student_model,
        settings.optimizer,
        lambda s: train_divergence(s, judge, train, validation, settings, seed, num_tokens=num_tokens),
        settings.steps,
    )
    build.record(
        loss_last_tenth=mean_of_last_tenth(log, "loss"),
        teacher_tokens=sum(row.values.get("teacher_tokens", 0.0) for row in log),
        rollout_tokens=sum(row.values.get("student_tokens", 0.0) for row in log),
        **last_validation(log),
    )
