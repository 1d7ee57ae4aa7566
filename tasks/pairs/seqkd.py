"""The stage `seqkd`: the pre-distilled student learns more of the teacher's outputs, as long as other methods train."""

from dataclasses import dataclass, field, replace
from typing import Literal

from kd_core.models.prompts import PLACEHOLDER, Prompts
from kd_core.train.budget import Budget
from kd_core.train.supervised import SupervisedSettings, train_supervised
from tasks.compute.device import device_of
from tasks.compute.models import load_artifact
from tasks.compute.training import last_validation, run_training
from tasks.pairs.inputs import read_split, reference_pairs, seqkd_pairs
from tasks.pairs.labels.reading import output_labels
from tasks.settings import part_of
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage, trains

BARE = Prompts(PLACEHOLDER)


@dataclass(frozen=True, kw_only=True)
class SeqKDSettings(Budget):
    """-log q(y | x) of the teacher's outputs (Kim and Rush 2016). Of `sampling` only the limit of length is used."""

    kind: Literal["seqkd"] = "seqkd"
    # of the tokens that the teacher wrote; 1 - alpha of its distributions there, which needs labels of its outputs
    alpha: float = field(default=1.0, metadata={"later": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != "last":
            raise ValueError(f"seqkd writes nothing while it trains to judge, got keep {self.keep!r}\nleave keep out")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")

    def supervised(self) -> SupervisedSettings:
        """These for the supervised loop, which is given a number of updates in place of epochs."""
        written = self.sampling.max_new_tokens
        return part_of(self, SupervisedSettings, epochs=1, max_steps=self.steps, max_target_tokens=written)


@trains()
@stage
def seqkd(
    build: Build,
    corpus: Artifact,
    outputs: Artifact,
    student: Artifact,
    settings: SeqKDSettings,
    seed: int,
    prompt: Prompts = BARE,
    labels: Artifact | None = None,
) -> None:
    """Train the student further: model/ and training_log.parquet. `labels`: the teacher's of its outputs, or none."""
    runtime, limits = build.runtime, settings.supervised()
    loaded = load_artifact(student, device_of(runtime), sharded=runtime.shares_out("student"))
    train = seqkd_pairs(loaded, prompt, corpus, outputs, limits)
    if labels is not None:
        train = replace(train, labels=output_labels(build, labels, outputs))
    held_out = read_split(corpus, "validation", ("source", "target"), settings.validation_rows)
    validation = reference_pairs(loaded, prompt, held_out, limits)
    log = run_training(
        build,
        loaded,
        settings.optimizer,
        lambda state: train_supervised(
            state, train, validation, limits, seed, num_steps=settings.steps, num_tokens=loaded.num_tokens
        ),
        settings.steps,
    )
    build.record(teacher_tokens=sum(row.values["tokens"] for row in log), **last_validation(log))
