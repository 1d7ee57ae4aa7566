"""The outline of a run: which stage takes what from which. It needs no Prefect; `flows.distill` adds it."""

from collections.abc import Mapping
from typing import Any

from data.specs import DatasetSettings
from flows.evaluation import System, evaluate_systems
from flows.outlines import Outline
from kd_core.models import ModelSettings
from kd_core.train_llmr import LLMRSettings
from kd_core.train_supervised import SupervisedSettings
from tasks.evaluate import EvaluationSettings
from tasks.llmr import llmr
from tasks.pre_distill import pre_distill as train_on_outputs
from tasks.preflight import check_models
from tasks.prepare import prepare
from tasks.score import ScoreSettings
from tasks.score import score as write_outputs
from tasks.store import Artifact
from tasks.teacher import TeacherSettings
from tasks.teacher import teacher as make_teacher


def pipeline(
    dataset: DatasetSettings,
    teacher: TeacherSettings,
    student: ModelSettings,
    score: ScoreSettings = ScoreSettings(),  # noqa: B008 (frozen)
    pre_distill: SupervisedSettings = SupervisedSettings(),  # noqa: B008 (frozen)
    method: LLMRSettings = LLMRSettings(),  # noqa: B008 (frozen)
    evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
    seed: int = 0,
    data_seed: int = 0,
    limit: int | None = None,
) -> Artifact:
    """LLMR: pairs, teacher, its outputs, a student trained on them, the same student trained on rewards, all compared.

    `seed` is the student's and `data_seed` the split's and the fitted teacher's, so that runs over several seeds share
    all that the student does not touch. Returns the artifact of the last stage. Call it inside `open_run`.
    """
    prompt = teacher.prompt
    corpus = prepare(dataset=dataset, seed=data_seed, limit=limit)
    guide = make_teacher(corpus=corpus, settings=teacher, seed=data_seed)
    outputs = write_outputs(corpus=corpus, teacher=guide, prompt=prompt, settings=score)
    seqkd = train_on_outputs(
        corpus=corpus, teacher=guide, outputs=outputs, student=student, prompt=prompt, settings=pre_distill, seed=seed
    )
    pupil = llmr(corpus=corpus, teacher=guide, student=seqkd, prompt=prompt, settings=method, seed=seed)
    return evaluate_systems(
        corpus=corpus,
        teacher=guide,
        systems={"teacher": System(guide, prompted=True), "seqkd": System(seqkd), "llmr": System(pupil)},
        prompt=prompt,
        reward=method.reward,
        settings=evaluation,
    )


def check(settings: Mapping[str, Any]) -> None:
    """Models are of one kind, whole, and of one vocabulary."""
    check_models(settings["teacher"], settings["student"])


OUTLINE = Outline("flows/distill.py:distill", pipeline, check)
