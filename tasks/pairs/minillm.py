"""The stage `minillm`: policy gradient of the reverse KL between whole outputs."""

from kd_core.models.loading import check_same_tokenizer, save_model
from kd_core.train.minillm import MiniLLMSettings, train_minillm
from kd_core.training import TrainState
from tasks.compute.device import device_of
from tasks.compute.models import load_artifact
from tasks.compute.training import run_training, write_log
from tasks.pairs.inputs import prompted_sources
from tasks.pairs.splits import read_split
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage


@stage
def minillm(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    student: Artifact,
    prompt: str,
    settings: MiniLLMSettings,
    seed: int,
) -> None:
    """Train the pre-distilled student by MiniLLM: model/ and training_log.parquet."""
    device = device_of(build.runtime)
    teacher_model, pupil = load_artifact(teacher, device), load_artifact(student, device)
    check_same_tokenizer(teacher_model.tokenizer, pupil.tokenizer)
    train, validation = (
        prompted_sources(
            pupil, prompt, read_split(corpus, split, ("source",), rows)["source"], settings.max_source_tokens
        )
        for split, rows in (("train", None), ("validation", settings.validation_rows))
    )
    num_tokens = min(teacher_model.num_tokens, pupil.num_tokens)
    log = run_training(
        build,
        TrainState.start(pupil.model, settings.optimizer),
        lambda s: train_minillm(s, teacher_model.model, train, validation, settings, seed, num_tokens=num_tokens),
        settings.steps,
    )
    save_model(pupil.model, pupil.tokenizer, build.dir / "model")
    write_log(build.dir / "training_log.parquet", log)
    build.record(
        rollout_tokens=sum(row.values["tokens"] for row in log if row.values["staleness"] == 0),
        truncated_share=sum(row.values["truncated"] for row in log) / len(log),
        **{name: value for name, value in log[-1].values.items() if name.startswith("validation_")},
    )
