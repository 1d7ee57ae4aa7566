"""The stage `divergence`: forward KL, reverse KL, JS or GKD, on the teacher's outputs and the student's own."""

from kd_core.batching import TokenRows
from kd_core.models.loading import check_same_tokenizer, save_model
from kd_core.train.divergence import DivergenceSettings, Transfer, reads_outputs, train_divergence
from kd_core.training import StepMetrics, TrainState
from tasks.compute.device import device_of
from tasks.compute.models import load_artifact
from tasks.compute.training import run_training, write_log
from tasks.pairs.inputs import prompted_sources, written_outputs
from tasks.pairs.splits import read_split
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage


@stage
def divergence(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    outputs: Artifact,
    student: Artifact,
    prompt: str,
    settings: DivergenceSettings,
    seed: int,
) -> None:
    """Train the pre-distilled student to the teacher's distributions: model/ and training_log.parquet."""
    device = device_of(build.runtime)
    teacher_model, pupil = load_artifact(teacher, device), load_artifact(student, device)
    check_same_tokenizer(teacher_model.tokenizer, pupil.tokenizer)
    if reads_outputs(settings):
        texts, written = written_outputs(corpus, outputs)
    else:
        texts, written = read_split(corpus, "train", ("source",))["source"], None
    held_out = read_split(corpus, "validation", ("source",), settings.validation_rows)
    sources, validation = (
        prompted_sources(pupil, prompt, each, settings.max_source_tokens) for each in (texts, held_out["source"])
    )
    train = Transfer(sources, None if written is None else TokenRows.of(written))
    num_tokens = min(teacher_model.num_tokens, pupil.num_tokens)
    log = run_training(
        build,
        TrainState.start(pupil.model, settings.optimizer),
        lambda s: train_divergence(s, teacher_model.model, train, validation, settings, seed, num_tokens=num_tokens),
        settings.steps,
    )
    save_model(pupil.model, pupil.tokenizer, build.dir / "model")
    write_log(build.dir / "training_log.parquet", log)
    _record(build, log)


def _record(build: Build, log: list[StepMetrics]) -> None:
    tail = log[-max(1, len(log) // 10) :]
    build.record(
        loss_last_tenth=sum(row.values["loss"] for row in tail) / len(tail),
        teacher_tokens=sum(row.values.get("teacher_tokens", 0.0) for row in log),
        rollout_tokens=sum(row.values.get("student_tokens", 0.0) for row in log),
        **{name: value for name, value in log[-1].values.items() if name.startswith("validation_")},
    )
