"""The outline of a run: which stage takes what from which. It needs no Prefect; `flows.distill` adds it."""

from collections.abc import Mapping
from typing import Any

from data.reading.specs import DatasetSettings
from flows.evaluation import System, evaluate_systems, measure_exposure
from flows.methods import Method
from flows.outlines import Outline
from kd_core.models.loading import ModelSettings
from kd_core.train.llmr import LLMRSettings
from kd_core.train.minillm import MiniLLMSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.pairs.divergence import divergence
from tasks.pairs.evaluate import EvaluationSettings
from tasks.pairs.exposure import ExposureSettings
from tasks.pairs.llmr import llmr
from tasks.pairs.minillm import minillm
from tasks.pairs.positions import check_room, needs
from tasks.pairs.pre_distill import pre_distill as train_on_outputs
from tasks.pairs.prepare import prepare
from tasks.pairs.prompting_student import PromptingStudentSettings, prompting_student
from tasks.pairs.score import ScoreSettings
from tasks.pairs.score import score as write_outputs
from tasks.pairs.seqkd import SeqKDSettings, seqkd
from tasks.pairs.teacher import TeacherSettings
from tasks.pairs.teacher import teacher as make_teacher
from tasks.preflight import check_models
from tasks.store.artifacts import Artifact


def pipeline(
    dataset: DatasetSettings,
    teacher: TeacherSettings,
    student: ModelSettings,
    score: ScoreSettings = ScoreSettings(),  # noqa: B008 (frozen)
    pre_distill: SupervisedSettings = SupervisedSettings(),  # noqa: B008 (frozen)
    method: Method = LLMRSettings(),  # noqa: B008 (frozen)
    evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
    exposure: ExposureSettings | None = None,
    seed: int = 0,
    data_seed: int = 0,
    limit: int | None = None,
) -> Artifact:
    """Distil a teacher into a student, in cached stages.

    Pairs, teacher, its outputs, a student trained on them, the same student trained by the method, all compared. Runs
    over several seeds share all that the student does not touch.

    Args:
        dataset: the pairs that are distilled on, and how they are cleaned and split
        teacher: a model by name with its prompt, or a small T5 that is fitted here
        student: a model by name, or a small T5 over the teacher's tokenizer
        score: how the teacher writes the outputs that the student first learns from
        pre_distill: the student's training on the teacher's outputs (SeqKD)
        method: how the student goes on: LLMR, or what it is compared with, by `kind`
        evaluation: how all of them are compared on the test split
        exposure: how the students' exposure bias is measured, by length; null = it is not
        seed: of the student: its weights, its batches, its samples
        data_seed: of the split, and of a teacher that is fitted here
        limit: at most this many training pairs
    """
    prompt = teacher.prompt
    corpus = prepare(dataset=dataset, seed=data_seed, limit=limit)
    guide = make_teacher(corpus=corpus, settings=teacher, seed=data_seed)
    check_room(corpus, guide, teacher, student, prompt, *needs(score, pre_distill, method, evaluation, exposure))
    systems = {"teacher": System(guide, prompted=True)}
    if isinstance(method, PromptingStudentSettings):
        untouched = prompting_student(teacher=guide, student=student, seed=seed)
        systems[method.kind] = System(untouched, prompted=True)
    else:
        outputs = write_outputs(corpus=corpus, teacher=guide, prompt=prompt, settings=score)
        start = train_on_outputs(
            corpus=corpus,
            teacher=guide,
            outputs=outputs,
            student=student,
            prompt=prompt,
            settings=pre_distill,
            seed=seed,
        )
        pupil = train_by(method, corpus, guide, outputs, start, prompt, seed)
        systems |= {"pre_distilled": System(start), method.kind: System(pupil)}
    for name, system in systems.items():
        if exposure is not None and not system.prompted:
            measure_exposure(
                corpus=corpus,
                teacher=guide,
                name=name,
                student=system.model,
                prompt=prompt,
                reward=evaluation.reward,
                settings=exposure,
            )
    return evaluate_systems(corpus=corpus, teacher=guide, systems=systems, prompt=prompt, settings=evaluation)


def train_by(
    method: Method, corpus: Artifact, teacher: Artifact, outputs: Artifact, student: Artifact, prompt: str, seed: int
) -> Artifact:
    """The pre-distilled student, trained on by a method."""
    match method:
        case LLMRSettings():
            return llmr(corpus=corpus, teacher=teacher, student=student, prompt=prompt, settings=method, seed=seed)
        case SeqKDSettings():
            return seqkd(corpus=corpus, outputs=outputs, student=student, settings=method, seed=seed)
        case MiniLLMSettings():
            return minillm(corpus=corpus, teacher=teacher, student=student, prompt=prompt, settings=method, seed=seed)
        case _:
            return divergence.labelled(method.kind)(
                corpus=corpus,
                teacher=teacher,
                outputs=outputs,
                student=student,
                prompt=prompt,
                settings=method,
                seed=seed,
            )


def check(settings: Mapping[str, Any]) -> list[str]:
    """Models are of one kind, whole, and of one vocabulary. Returns remarks on what is odd about them."""
    return check_models(settings["teacher"], settings["student"])


OUTLINE = Outline("flows/distill.py:distill", pipeline, check)
