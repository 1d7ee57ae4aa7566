"""The stage `minillm`: policy gradient of the reverse KL between whole outputs."""

from kd_core.models.prompts import Prompts
from kd_core.train.minillm import MiniLLMSettings, train_minillm
from tasks.compute.device import teacher_devices
from tasks.compute.models import load_pair
from tasks.compute.training import last_validation, mean_of, run_training
from tasks.pairs.inputs import read_sources, validation_sources
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage, trains


@trains()
@stage
def minillm(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    student: Artifact,
    prompt: Prompts,
    settings: MiniLLMSettings,
    seed: int,
) -> None:
    """Train the pre-distilled student by MiniLLM: model/ and training_log.parquet."""
    teacher_model, student_model = pair = load_pair(
        teacher, student, teacher_devices(build.runtime), sharded=build.runtime.sharded
    )
    limit = settings.max_source_tokens
    train = read_sources(corpus, "train", pair, prompt, limit)
    validation = validation_sources(corpus, pair, prompt, settings)
    num_tokens = student_model.num_tokens
    log = run_training(
        build,
        student_model,
        settings.optimizer,
        lambda s: train_minillm(s, teacher_model.model, train, validation, settings, seed, num_tokens=num_tokens),
        settings.steps,
    )
    build.record(
        rollout_tokens=sum(row.values["tokens"] for row in log[1:] if row.values["staleness"] == 0),
        truncated_share=mean_of(log, "truncated"),
        **last_validation(log),
    )
