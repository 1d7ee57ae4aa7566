"""The flow `distill`: the pipeline with a record in Prefect, its artifacts in Prefect's UI."""

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.exceptions import FailedRun
from prefect.runtime import deployment, flow_run
from prefect.states import Failed

from data.specs import DatasetSettings
from flows.messages import explain
from flows.methods import Method
from flows.pipeline import execute
from flows.publish import PrefectReporter, publish_results
from kd_core.models import ModelSettings
from kd_core.train_llmr import LLMRSettings
from kd_core.train_supervised import SupervisedSettings
from tasks.compute import device_of
from tasks.evaluate import EvaluationSettings
from tasks.progress import default_reporter
from tasks.score import ScoreSettings
from tasks.stage import RuntimeSettings
from tasks.store import Store, default_root
from tasks.teacher import TeacherSettings


@flow(name="distill", persist_result=False)
def distill(
    dataset: DatasetSettings,
    teacher: TeacherSettings,
    student: ModelSettings,
    score: ScoreSettings = ScoreSettings(),  # noqa: B008 (frozen)
    pre_distill: SupervisedSettings = SupervisedSettings(),  # noqa: B008 (frozen)
    method: Method = LLMRSettings(),  # noqa: B008 (frozen)
    evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 (frozen)
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
        runtime: device, threads and checkpoints; changes no result
        seed: of the student: its weights, its batches, its samples
        data_seed: of the split, and of a teacher that is fitted here
        limit: at most this many training pairs
    """
    parameters = locals().copy()  # exactly the run's parameters: this is the first statement
    logger = get_run_logger()
    try:
        with _one_run_per_gpu(runtime):
            store = Store(default_root())
            run, last = execute(store, _run_name(), parameters, PrefectReporter(store, default_reporter()))
            publish_results(run, last, store)
    except (ValueError, OSError) as error:
        logger.error(explain(error))
        logging.getLogger("prefect.flow_runs").addFilter(_not_failed_run)
        return Failed(message=explain(error))
    return run.run_id, str(last.path)


def run_recorded(name: str, parameters: dict[str, Any]) -> tuple[str, Path]:
    """Run the flow in this process, recorded by the server that PREFECT_API_URL names: its run id and last artifact.

    Raises what made the run fail.
    """
    state: State[Any] = distill.with_options(flow_run_name=name)(**parameters, return_state=True)
    try:
        run_id, last = state.result()
    except FailedRun:
        raise ValueError(state.message) from None
    return run_id, Path(last)


def _run_name() -> str:
    """The named run: the deployment's name, or the name that `distill run` gave to the flow run."""
    return str(deployment.name or flow_run.name)


def _one_run_per_gpu(runtime: RuntimeSettings) -> AbstractContextManager[None]:
    """Wait for the slot that `distill up` has made, where the run computes on a GPU."""
    return concurrency("gpu") if device_of(runtime).type == "cuda" else nullcontext()


def _not_failed_run(record: logging.LogRecord) -> bool:
    """Keep the traceback of Prefect's own FailedRun out of the log: the reason has just been said in one line."""
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))
