"""The outline of a run: which stage takes what from which. It needs no Prefect; `flows.distill` adds it."""

from typing import Any

from data.specs import DatasetSettings
from flows.evaluation import System, evaluate_systems
from flows.settings import jsonable, signature
from kd_core.models import ModelSettings
from kd_core.train_llmr import LLMRSettings
from kd_core.train_supervised import SupervisedSettings
from tasks.catalog import build_catalog
from tasks.evaluate import EvaluationSettings
from tasks.llmr import llmr
from tasks.pre_distill import pre_distill as train_on_outputs
from tasks.preflight import check_models
from tasks.prepare import prepare
from tasks.progress import Reporter
from tasks.score import ScoreSettings
from tasks.score import score as write_outputs
from tasks.stage import Run, RuntimeSettings, open_run
from tasks.store import Artifact, Store
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


PARAMETERS = signature(pipeline) | {"runtime": (RuntimeSettings, RuntimeSettings())}


def execute(
    store: Store, name: str, parameters: dict[str, Any], reporter: Reporter, *, planning: bool = False
) -> tuple[Run, Artifact]:
    """Run (or plan) the outline with validated parameters, record it, and rebuild the results' database."""
    settings = dict(parameters)
    runtime: RuntimeSettings = settings.pop("runtime")
    check_models(settings["teacher"], settings["student"])
    with open_run(
        store,
        name=name,
        parameters=jsonable(parameters),
        runtime=runtime,
        reporter=reporter,
        planning=planning,
    ) as run:
        last = pipeline(**settings)
    if not planning:
        build_catalog(store)
    return run, last
