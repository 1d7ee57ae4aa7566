"""The stage `seqkd`: the pre-distilled student goes on with the teacher's outputs, for as long as the others train."""

from dataclasses import dataclass
from typing import Literal

from kd_core.batching import TokenRows
from kd_core.models.loading import save_model
from kd_core.train.budget import Budget
from kd_core.train.supervised import Pairs, SupervisedSettings, train_supervised
from kd_core.training import TrainState
from tasks.compute.device import device_of
from tasks.compute.models import load_artifact
from tasks.compute.training import run_training, write_log
from tasks.pairs.inputs import written_outputs
from tasks.pairs.splits import read_split
from tasks.settings import part_of
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage


@dataclass(frozen=True, kw_only=True)
class SeqKDSettings(Budget):
    """-log q(y | x) of what the teacher wrote (Kim and Rush 2016). `sampling` limits its length, no more."""

    kind: Literal["seqkd"] = "seqkd"

    def supervised(self) -> SupervisedSettings:
        """The same for the supervised loop, which is told the number of updates and counts no epochs."""
        written = self.sampling.max_new_tokens
        return part_of(self, SupervisedSettings, epochs=1, max_steps=self.steps, max_target_tokens=written)


@stage
def seqkd(
    build: Build,
    corpus: Artifact,
    outputs: Artifact,
    student: Artifact,
    settings: SeqKDSettings,
    seed: int,
) -> None:
    """Train on: model/ and training_log.parquet. The student reads the raw source."""
    pupil, limits = load_artifact(student, device_of(build.runtime)), settings.supervised()

    def rows(texts: list[str]) -> TokenRows:
        return TokenRows.encode(pupil.tokenizer, texts, limits.max_source_tokens)

    texts, written = written_outputs(corpus, outputs)
    targets = TokenRows.of([ids[: limits.max_target_tokens] for ids in written])
    held_out = read_split(corpus, "validation", ("source", "target"), settings.validation_rows)
    train = Pairs(rows(texts), targets)
    validation = Pairs(
        rows(held_out["source"]), TokenRows.targets(pupil.tokenizer, held_out["target"], limits.max_target_tokens)
    )
    log = run_training(
        build,
        TrainState.start(pupil.model, settings.optimizer),
        lambda s: train_supervised(s, train, validation, limits, seed, num_steps=settings.steps),
        settings.steps,
    )
    save_model(pupil.model, pupil.tokenizer, build.dir / "model")
    write_log(build.dir / "training_log.parquet", log)
    build.record(validation_loss=log[-1].values["validation_loss"], teacher_tokens=sum(r.values["tokens"] for r in log))
