"""The outline of a run on pairs: which stage takes what from which. It needs no Prefect; `flows.distill` adds it.

A run's settings are called as the stages that they are for; stages that share a name with them are called by module.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tasks.pairs.pre_distill
import tasks.pairs.score
import tasks.pairs.teacher
from data.reading.specs import DatasetSettings
from flows.evaluation import System, evaluate_systems, measure_exposure
from flows.methods import Method, check_labels, reads_labels, train
from flows.outlines import Outline
from kd_core.lengths import Lengths
from kd_core.models.files import is_gguf
from kd_core.models.prompts import Prompt, Prompts
from kd_core.rollout.teacher_labels import LabelSettings
from kd_core.train.llmr import LLMRSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.compute.served import reached
from tasks.pairs.evaluate import EvaluationSettings
from tasks.pairs.exposure import ExposureSettings
from tasks.pairs.labels.label_outputs import label_outputs
from tasks.pairs.prepare import prepare
from tasks.pairs.prompting_student import PromptingStudentSettings, prompting_student
from tasks.pairs.score import ScoreSettings
from tasks.pairs.starts.prune import Calibration, prune
from tasks.pairs.starts.unpack import unpack
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.preflight.models import check_adapter, check_chat, check_models, check_pruning
from tasks.preflight.positions import check_room, needs
from tasks.preflight.served import check_reached, check_served
from tasks.store.artifacts import Artifact
from tasks.store.stage import PlanRow


def pipeline(
    dataset: DatasetSettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    lengths: Lengths = Lengths(),  # noqa: B008 (frozen)
    score: ScoreSettings = ScoreSettings(),  # noqa: B008 (frozen)
    pre_distill: SupervisedSettings = SupervisedSettings(),  # noqa: B008 (frozen)
    method: Method = LLMRSettings(),  # noqa: B008 (frozen)
    evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
    exposure: ExposureSettings | None = None,
    labels: LabelSettings | None = None,
    seed: int = 0,
    data_seed: int = 0,
    limit: int | None = None,
) -> Artifact:
    """Distil a teacher into a student, in cached stages.

    Pairs, teacher, its outputs, a student trained on them, the same student trained by the method, all compared. Runs
    over several seeds share all that the student does not touch.

    Args:
        dataset: the pairs that are distilled on, and how they are cleaned and split
        teacher: a model by name with its prompt, one behind a server, or a small T5 that is fitted here
        student: a model by name, a small T5 over the teacher's tokenizer, the teacher's weights, or some of its layers
        lengths: how many tokens every stage reads and writes that does not say otherwise
        score: how the teacher writes the outputs that the student first learns from
        pre_distill: the student's training on the teacher's outputs (SeqKD)
        method: how the student goes on: LLMR, or what it is compared with, by `kind`
        evaluation: how all of them are compared on the test split
        exposure: how the students' exposure bias is measured, by length; null = it is not
        labels: how the teacher's distributions over its outputs are kept, for what learns from them; null = not at all
        seed: of the student: its weights, its batches, its samples
        data_seed: of the split, and of a teacher that is fitted here
        limit: at most this many training pairs
    """
    teacher, score, pre_distill = lengths.fill(teacher), lengths.fill(score), lengths.fill(pre_distill)
    method, evaluation, exposure = lengths.fill(method), lengths.fill(evaluation), lengths.fill(exposure)
    prompt = Prompts(teacher.reads, student.reads)
    corpus = prepare(dataset=dataset, seed=data_seed, limit=limit)
    teacher_model = tasks.pairs.teacher.teacher(corpus=corpus, settings=teacher, seed=data_seed)
    teacher_model = reached(teacher_model, teacher.endpoint)
    wanted = needs(score, pre_distill, method, evaluation, exposure)
    check_room(corpus, teacher_model, teacher, student if student.from_ is None else teacher, prompt, *wanted)
    start = made_first(student, teacher_model, corpus, prompt.teacher, pre_distill)

    systems = {"teacher": System(teacher_model, prompted=True)}
    if isinstance(method, PromptingStudentSettings):
        untrained = start or prompting_student(teacher=teacher_model, student=student, seed=seed)
        systems[method.kind] = System(untrained, prompted=True)
    else:
        outputs = tasks.pairs.score.score(corpus=corpus, teacher=teacher_model, prompt=prompt.teacher, settings=score)
        kept: Artifact | None = None
        if labels is not None and (pre_distill.alpha < 1 or reads_labels(method)):
            kept = label_outputs(
                corpus=corpus,
                teacher=teacher_model,
                outputs=outputs,
                prompt=prompt.teacher,
                max_source_tokens=score.max_source_tokens,
                settings=labels,
                seed=data_seed,
            )
        pre_distilled = tasks.pairs.pre_distill.pre_distill(
            corpus=corpus,
            teacher=teacher_model,
            outputs=outputs,
            student=student,
            prompt=prompt,
            settings=pre_distill,
            seed=seed,
            start=start,
            labels=kept if pre_distill.alpha < 1 else None,
        )
        top_k = labels.top_k if labels is not None and teacher.endpoint is not None else 0
        distilled = train(method, corpus, teacher_model, outputs, pre_distilled, prompt, seed, kept, top_k)
        systems |= {"pre_distilled": System(pre_distilled), method.kind: System(distilled)}

    if exposure is not None:
        for name, system in systems.items():
            if not system.prompted:
                measure_exposure(corpus, teacher_model, name, system.model, prompt, evaluation.reward, exposure)
    return evaluate_systems(corpus, teacher_model, systems, prompt, evaluation)


def made_first(
    student: StudentSettings, teacher: Artifact, corpus: Artifact, prompt: Prompt, pre_distill: SupervisedSettings
) -> Artifact | None:
    """The weights of a student that has to be made before it is taught; None for one that is there, or is described."""
    if student.path is not None and is_gguf(student.path):
        return unpack(settings=student)
    if student.layers is None:
        return None
    if student.choose != "influence":
        return prune(teacher=teacher, layers=student.layers, choose=student.choose)
    sample = Calibration(
        prompt=prompt,
        max_source_tokens=pre_distill.max_source_tokens,
        max_target_tokens=pre_distill.max_target_tokens,
    )
    return prune(teacher=teacher, layers=student.layers, choose=student.choose, corpus=corpus, calibration=sample)


def check(settings: Mapping[str, Any]) -> list[str]:
    """Models are of one kind, whole, of one vocabulary, and chat where they are to. Returns remarks on oddities."""
    teacher, student = settings["teacher"], settings["student"]
    if isinstance(settings.get("method"), PromptingStudentSettings) and student.from_ and student.layers is None:
        raise ValueError(
            "a student from: teacher is the teacher itself, and there is nothing to compare by prompting it\n"
            "give it fewer layers (student.layers), or name another model"
        )
    if teacher.endpoint is not None:
        check_served(settings)
    remarks = check_models(teacher, student)
    check_pruning(teacher, student)
    for role, each in (("teacher", teacher), ("student", student)):
        check_chat(role, each, each.reads)
    remarks += check_adapter(teacher, student)
    lengths = settings.get("lengths", Lengths())
    pre_distill = lengths.fill(settings.get("pre_distill", SupervisedSettings()))
    method = lengths.fill(settings.get("method", LLMRSettings()))
    read = lengths.fill(settings.get("score", ScoreSettings())).max_source_tokens
    served = teacher.endpoint is not None
    return remarks + check_labels(settings.get("labels"), pre_distill, method, read, served=served)


def asks(settings: Mapping[str, Any]) -> bool:
    """Whether the teacher is behind a server."""
    return settings["teacher"].endpoint is not None


def check_plan(settings: Mapping[str, Any], plan: Sequence[PlanRow]) -> None:
    """A server that is to be asked is there, and is the one that is meant."""
    check_reached(settings["teacher"], plan, settings.get("labels"), settings.get("method"))


OUTLINE = Outline("flows/distill.py:distill", pipeline, check, asks, check_plan)
