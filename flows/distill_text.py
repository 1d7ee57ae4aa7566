"""The flow `distill` on running text: DaD-DAgger and its baselines, recorded by Prefect."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from data.reading.texts import TextSettings
from flows.distill_text_outline import OUTLINE
from flows.stack.recorded import run_in_prefect
from kd_core.windows.teacher_labels import LabelSettings
from kd_core.windows.windows import WindowSettings
from tasks.store.stage import RuntimeSettings
from tasks.text.dagger_settings import DaggerSettings
from tasks.text.evaluate import TextEvaluationSettings
from tasks.text.language_model import LanguageModelSettings, TeacherModelSettings


@flow(name="distill", persist_result=False)
def distill_text(
    dataset: TextSettings,
    teacher: TeacherModelSettings,
    student: LanguageModelSettings,
    windows: WindowSettings = WindowSettings(),  # noqa: B008 (frozen)
    labels: LabelSettings = LabelSettings(),  # noqa: B008 (frozen)
    method: DaggerSettings = DaggerSettings(),  # noqa: B008 (frozen)
    evaluation: TextEvaluationSettings = TextEvaluationSettings(),  # noqa: B008 (frozen)
    runtime: RuntimeSettings = RuntimeSettings(),  # noqa: B008 (frozen)
    seed: int = 0,
    data_seed: int = 0,
    limit: int | None = None,
) -> State[Any] | tuple[str, str]:
    """Distil a causal teacher into a student on running text, by DaD-DAgger or one of its baselines, in cached stages.

    Args:
        dataset: the text that is distilled on, and the one that small models are pre-trained on
        teacher: a causal model by name, or a small GPT-Neo pre-trained here; fine-tuned on the text
        student: a causal model by name, or a small GPT-Neo over the teacher's tokenizer
        windows: how the text becomes windows
        labels: how the teacher's distributions are kept
        method: next_token, dad, imitkd or dad_dagger, and its rounds
        evaluation: how the systems are compared on held-out text
        runtime: device, threads and checkpoints; changes no result
        seed: of the rounds: batches and free running
        data_seed: of the text, and of all that is made before the first round
        limit: at most this many tokens of the text
    """
    parameters = locals().copy()  # exactly the run's parameters: this is the first statement
    return run_in_prefect(OUTLINE, parameters)
