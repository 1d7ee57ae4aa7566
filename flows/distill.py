"""The flow `distill`: the pipeline with a record in Prefect, its artifacts in Prefect's UI."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from data.reading.specs import DatasetSettings
from flows.distill_outline import OUTLINE
from flows.methods import Method
from flows.stack.recorded import run_in_prefect
from kd_core.models.loading import ModelSettings
from kd_core.train.llmr import LLMRSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.pairs.evaluate import EvaluationSettings
from tasks.pairs.exposure import ExposureSettings
from tasks.pairs.score import ScoreSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.store.stage import RuntimeSettings


@flow(name="distill", persist_result=False)
def distill(
    dataset: DatasetSettings,
    teacher: TeacherSettings,
    student: ModelSettings,
    score: ScoreSettings = ScoreSettings(),  # noqa: B008 (frozen)
    pre_distill: SupervisedSettings = SupervisedSettings(),  # noqa: B008 (frozen)
    method: Method = LLMRSettings(),  # noqa: B008 (frozen)
    evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
    exposure: ExposureSettings | None = None,
    runtime: RuntimeSettings = RuntimeSettings(),  # noqa: B008 (frozen)
    seed: int = 0,
    data_seed: int = 0,
    limit: int | None = None,
) -> State[Any] | tuple[str, str]:
    """Distil a teacher into a student, in cached stages.

    Args:
        dataset: the pairs that are distilled on, and how they are cleaned and split
        teacher: a model by name with its prompt, or a small T5 that is fitted here
        student: a model by name, or a small T5 over the teacher's tokenizer
        score: how the teacher writes the outputs that the student first learns from
        pre_distill: the student's training on the teacher's outputs (SeqKD)
        method: how the student goes on: LLMR, or what it is compared with, by `kind`
        evaluation: how all of them are compared on the test split
        exposure: how the students' exposure bias is measured, by length; null = it is not
        runtime: device, threads and checkpoints; changes no result
        seed: of the student: its weights, its batches, its samples
        data_seed: of the split, and of a teacher that is fitted here
        limit: at most this many training pairs
    """
    parameters = locals().copy()  # exactly the run's parameters: this is the first statement
    return run_in_prefect(OUTLINE, parameters)
