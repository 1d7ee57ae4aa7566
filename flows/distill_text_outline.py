"""The outline of a run on running text: DaD-DAgger's rounds, or one of its baselines. It needs no Prefect."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.reading.texts import TextSettings
from flows.outlines import Outline
from kd_core.rollout.teacher_labels import LabelSettings
from kd_core.windows.cutting import WindowSettings
from kd_core.windows.trunk import TrunkPrecision
from tasks.judge.judge import check_judge, why_no_judge
from tasks.pairs.starts.prune import prune
from tasks.preflight.models import check_models, check_positions, check_pruning
from tasks.store.artifacts import Artifact
from tasks.store.stage import PlanRow
from tasks.text.dagger_aggregate import dagger_aggregate
from tasks.text.dagger_settings import DaggerSettings
from tasks.text.dagger_train import dagger_train
from tasks.text.evaluate import TextEvaluationSettings, evaluate
from tasks.text.features import features
from tasks.text.fine_tune import fine_tune
from tasks.text.free_run import free_run
from tasks.text.g_eval import g_eval
from tasks.text.label import label
from tasks.text.language_model import (
    LanguageModelSettings,
    StudentModelSettings,
    TeacherModelSettings,
    language_model,
)
from tasks.text.tokens import check_lengths, tokens


def pipeline(
    dataset: TextSettings,
    teacher: TeacherModelSettings,
    student: StudentModelSettings,
    windows: WindowSettings = WindowSettings(),  # noqa: B008 (frozen)
    labels: LabelSettings = LabelSettings(),  # noqa: B008 (frozen)
    method: DaggerSettings = DaggerSettings(),  # noqa: B008 (frozen)
    evaluation: TextEvaluationSettings = TextEvaluationSettings(),  # noqa: B008 (frozen)
    seed: int = 0,
    data_seed: int = 0,
    limit: int | None = None,
) -> Artifact:
    """Distil a causal teacher into a student on running text, by DaD-DAgger or one of its baselines, in cached stages.

    Text, two models, the teacher fine-tuned and asked about every window; then rounds; then all compared. Runs over
    several seeds and methods share all that is made before the first round.

    Args:
        dataset: the text that is distilled on, and the one that small models are pre-trained on
        teacher: a causal model by name, or a small GPT-Neo pre-trained here; fine-tuned on the text
        student: a causal model by name, a small GPT-Neo over the teacher's tokenizer, or some of the teacher's layers
        windows: how the text becomes windows
        labels: how the teacher's distributions are kept
        method: next_token, dad, imitkd or dad_dagger, and its rounds
        evaluation: how the systems are compared on held-out text
        seed: of the rounds: batches and free running
        data_seed: of the text, and of all that is made before the first round
        limit: at most this many tokens of the text
    """
    corpus = tokens(dataset=dataset, vocabulary=teacher.vocabulary(), seed=data_seed, limit=limit)
    check_lengths(corpus, windows.longest + 1, windows.context + max(method.horizon, evaluation.horizon))
    if student.layers is None:
        student_model = language_model.labelled("student")(corpus=corpus, settings=student, seed=data_seed)
    teacher_model = language_model.labelled("teacher")(corpus=corpus, settings=teacher, seed=data_seed)
    if student.layers is not None:
        student_model = prune(teacher=teacher_model, layers=student.layers, choose=student.choose)

    def frozen_states(role: str, model: Artifact, settings: LanguageModelSettings) -> Artifact | None:
        """The states of a model's frozen part for every window, computed once and kept."""
        if method.features == "none" or settings.trainable == "all":
            return None
        return features.labelled(role)(
            corpus=corpus,
            model=model,
            windows=windows,
            dtype=method.features,
            trunk_precision=method.trunk_precision,
        )

    def in_training(settings: LanguageModelSettings) -> TrunkPrecision:
        """The precision of a model's trunk where its windows are read anew; one that is trained has its optimizer's."""
        return method.trunk_precision if settings.trainable == "last_block" else "float32"

    teacher_states = None
    if teacher.fit is not None:
        teacher_states = frozen_states("teacher", teacher_model, teacher)
        teacher_model = fine_tune(
            corpus=corpus,
            model=teacher_model,
            features=teacher_states,
            trainable=teacher.trainable,
            windows=windows,
            settings=teacher.fit,
            seed=data_seed,
            trunk_precision=in_training(teacher),
        )
    answers, asked = None, None
    if method.mix < 1:
        asked = teacher_model
        answers = label(
            corpus=corpus,
            teacher=asked,
            features=teacher_states,
            windows=windows,
            settings=labels,
            seed=data_seed,
            trunk_precision=method.trunk_precision,
        )

    student_states = frozen_states("student", student_model, student)
    trained: list[Artifact] = []  # the student after each round
    added: dict[str, Artifact] = {}  # what each round but the last adds to the data
    for number in range(1, method.rounds + 1):
        newest = dagger_train.labelled(str(number))(
            corpus=corpus,
            teacher=asked if labels.kind == "hidden" else None,
            student=trained[-1] if trained and method.warm_start else student_model,
            features=student_states,
            labels=answers,
            added=dict(added),
            trainable=student.trainable,
            windows=windows,
            settings=method.training(),
            number=number,
            seed=seed,
            trunk_precision=in_training(student),
        )
        trained.append(newest)
        if method.aggregates and number < method.rounds:
            added[str(number)] = dagger_aggregate.labelled(str(number))(
                corpus=corpus,
                teacher=asked,
                student=newest,
                windows=windows,
                settings=method.aggregation(),
                labels=None if asked is None else labels,
                features=None if student_states is None else method.features,
                number=number,
                seed=seed,
                student_precision=in_training(student),
            )

    between = range(1, method.rounds) if evaluation.rounds else ()
    systems = {"teacher": teacher_model, "student": student_model}
    systems |= {f"round_{number}": trained[number - 1] for number in between} | {method.kind: trained[-1]}
    rounds = {"student": 0, **{f"round_{number}": number for number in between}, method.kind: method.rounds}
    return compared(corpus, systems, rounds, windows.context, evaluation)


def compared(
    corpus: Artifact,
    systems: Mapping[str, Artifact],
    rounds: Mapping[str, int],
    context: int,
    settings: TextEvaluationSettings,
) -> Artifact:
    """Let each system write from `context` tokens, judge it where a judge is named, and compare all."""
    why_not = why_no_judge(settings.judge)
    written, judged = {}, {}
    for name, system in systems.items():
        written[name] = free_run.labelled(name)(corpus=corpus, model=system, settings=settings.free_run(context))
        if settings.judge is not None and why_not is None:
            judged[name] = g_eval.labelled(name)(corpus=corpus, written=written[name], settings=settings.judge)
    return evaluate(
        corpus=corpus,
        systems=written,
        judged=judged,
        why_not_judged=why_not or "",
        rounds=rounds,
        resamples=settings.resamples,
        block=settings.block,
        seed=settings.seed,
    )


def check(settings: Mapping[str, Any]) -> list[str]:
    """Models are causal, whole, of one vocabulary, and have positions for the windows. Returns remarks on them."""
    teacher, student = settings["teacher"], settings["student"]
    remarks = check_models(teacher, student, "causal")
    check_pruning(teacher, student)
    windows, method, evaluation = settings["windows"], settings["method"], settings["evaluation"]
    lengths = {"windows.predictions" if windows.mode == "packed" else "": windows.longest}
    if windows.mode == "packed" and method.aggregates:
        lengths["method.horizon"] = windows.context + method.horizon - 1
    if not evaluation.sliding:
        lengths["evaluation.horizon"] = windows.context + evaluation.horizon - 1
    longest = max(lengths, key=lengths.__getitem__)
    lower = "windows.context" + (f" or {longest}" if longest else "")
    for role, model in (("teacher", teacher), ("student", student if student.from_ is None else teacher)):
        check_positions(role, model, lengths[longest], lower)
    return remarks


def check_plan(settings: Mapping[str, Any], plan: Sequence[PlanRow]) -> str | None:
    """If anything is to be judged, ask the judge for one answer before anything expensive starts."""
    judge = settings["evaluation"].judge
    wanted = any(row.stage.startswith("g_eval[") and row.status != "hit" for row in plan)
    return check_judge(judge) if judge is not None and wanted else None


def asks(settings: Mapping[str, Any]) -> bool:
    """Whether anything is judged."""
    return settings["evaluation"].judge is not None


OUTLINE = Outline("flows/distill_text.py:distill_text", pipeline, check, asks, check_plan)
