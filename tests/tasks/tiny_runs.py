"""A whole run of LLMR in a second: 80 pairs from a CSV file, two updates in each training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from data.reading.specs import DatasetSettings
from flows.distill_outline import check, pipeline
from flows.evaluation import System, evaluate_systems
from kd_core.losses.rewards import RewardSettings
from kd_core.models.prompts import Prompts
from kd_core.rollout.beam_search import BeamSettings
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import BatchSettings
from kd_core.train.llmr import LLMRSettings
from kd_core.train.state import OptimizerSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.engine.settings import RuntimeSettings
from tasks.pairs.evaluate import EvaluationSettings
from tasks.pairs.llmr import llmr
from tasks.pairs.pre_distill import pre_distill
from tasks.pairs.prepare import prepare
from tasks.pairs.score import ScoreSettings, score
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings, teacher
from tasks.store.artifacts import Artifact, Store
from tasks.store.stage import Run, open_run
from tests.tasks.tiny_models import WORDS

RUNTIME = RuntimeSettings(device="cpu", threads=1)
OPTIMIZER = OptimizerSettings(learning_rate=1e-3)
TRAINING = SupervisedSettings(max_steps=2, max_source_tokens=16, max_target_tokens=8, optimizer=OPTIMIZER)
SCORE = ScoreSettings(beam=BeamSettings(num_beams=2, max_new_tokens=6), max_source_tokens=32)
METHOD = LLMRSettings(
    steps=2,
    max_source_tokens=16,
    sampling=SamplingSettings(max_new_tokens=6),
    reward=RewardSettings(truncated="bootstrap"),  # dropped, nothing might be left to learn from
    batch=BatchSettings(micro_batch_rows=8, micro_batches=1),
    optimizer=OPTIMIZER,
)
EVALUATION = EvaluationSettings(
    decoding=BeamSettings(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=6),
    reward=METHOD.reward,
    resamples=20,
    max_source_tokens=16,
)


def write_pairs(path: Path) -> DatasetSettings:
    """80 pairs of a few words each, and the settings that read them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "target"])
        writer.writerows([f"{WORDS[i % 21]} {WORDS[i % 7]} {i}", f"{WORDS[i % 5]} {WORDS[i % 11]}"] for i in range(80))
    return DatasetSettings(source="files", path=str(path), validation_share=0.1, test_share=0.1)


def run_llmr(
    store: Store, teacher_settings: TeacherSettings, student: StudentSettings, *, name: str = "tiny"
) -> tuple[Run, dict[str, Artifact]]:
    """Every stage of a run, and what each has made."""
    made: dict[str, Artifact] = {}
    prompts = Prompts(teacher_settings.reads, student.reads)
    with open_run(store, name=name, runtime=RUNTIME) as run:
        made["corpus"] = corpus = prepare(dataset=write_pairs(store.root / "pairs.csv"), seed=0, limit=None)
        made["teacher"] = model = teacher(corpus=corpus, settings=teacher_settings, seed=0)
        made["score"] = outputs = score(corpus=corpus, teacher=model, prompt=teacher_settings.reads, settings=SCORE)
        made["seqkd"] = start = pre_distill(
            corpus=corpus,
            teacher=model,
            outputs=outputs,
            student=student,
            prompt=prompts,
            settings=TRAINING,
            seed=0,
        )
        made["llmr"] = trained = llmr(
            corpus=corpus, teacher=model, student=start, prompt=prompts, settings=METHOD, seed=0
        )
        made["evaluate"] = evaluate_systems(
            corpus=corpus,
            teacher=model,
            systems={"teacher": System(model, prompted=True), "pre_distilled": System(start), "llmr": System(trained)},
            prompt=prompts,
            settings=EVALUATION,
        )
    return run, made


def run_pipeline(
    store: Store,
    teacher_settings: TeacherSettings,
    student: StudentSettings,
    method: Any = METHOD,
    *,
    planning: bool = False,
) -> Run:
    """A run by its outline, all checks before it included."""
    settings: dict[str, Any] = {"teacher": teacher_settings, "student": student, "method": method}
    check(settings)
    dataset = write_pairs(store.root / "pairs.csv")
    with open_run(store, name="tiny", runtime=RUNTIME, planning=planning) as run:
        pipeline(dataset, score=SCORE, pre_distill=TRAINING, evaluation=EVALUATION, **settings)
    return run


def made_by(store: Store, run: Run, name: str) -> Artifact:
    """What a stage of a run has made."""
    return next(store.artifact(each.stage, each.key) for each in run.stages if each.stage == name)
