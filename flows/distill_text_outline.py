"""The outline of a run on running text: DaD-DAgger's rounds, or one of its baselines. It needs no Prefect."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.reading.texts import TextSettings
from flows.outlines import Outline
from kd_core.windows.teacher_labels import LabelSettings
from kd_core.windows.windows import WindowSettings
from tasks.judge.judge import check_judge, why_no_judge
from tasks.preflight import check_models, check_positions
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
from tasks.text.language_model import LanguageModelSettings, TeacherModelSettings, language_model
from tasks.text.tokens import check_lengths, tokens


def pipeline(
    dataset: TextSettings,
    teacher: TeacherModelSettings,
    student: LanguageModelSettings,
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
        student: a causal model by name, or a small GPT-Neo over the teacher's tokenizer
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
    start = language_model.labelled("student")(corpus=corpus, settings=student, seed=data_seed)
    guide_base = language_model.labelled("teacher")(corpus=corpus, settings=teacher, seed=data_seed)

    def kept(model: Artifact, settings: LanguageModelSettings, role: str) -> Artifact | None:
        if method.features == "none" or settings.trainable == "all":
            return None
        return features.labelled(role)(corpus=corpus, model=model, windows=windows, dtype=method.features)

    guide, guide_features = guide_base, None
    if teacher.fit is not None:
        guide_features = kept(guide_base, teacher, "teacher")
        guide = fine_tune(
            corpus=corpus,
            model=guide_base,
            features=guide_features,
            trainable=teacher.trainable,
            windows=windows,
            settings=teacher.fit,
            seed=data_seed,
        )
    answers = None
    if method.mix < 1:
        answers = label(
            corpus=corpus, teacher=guide, features=guide_features, windows=windows, settings=labels, seed=data_seed
        )
    asked = None if answers is None else guide
    start_features = kept(start, student, "student")

    pupil, pupils = start, {}
    added: dict[str, Artifact] = {}
    for number in range(1, method.rounds + 1):
        pupil = dagger_train.labelled(str(number))(
            corpus=corpus,
            teacher=asked if labels.kind == "hidden" else None,
            student=pupil if method.warm_start else start,
            features=start_features,
            labels=answers,
            added=dict(added),
            trainable=student.trainable,
            windows=windows,
            settings=method.training(),
            number=number,
            seed=seed,
        )
        pupils[number] = pupil
        if method.aggregates and number < method.rounds:
            added[str(number)] = dagger_aggregate.labelled(str(number))(
                corpus=corpus,
                teacher=asked,
                student=pupil,
                windows=windows,
                settings=method.aggregation(),
                labels=None if asked is None else labels,
                features=None if start_features is None else method.features,
                number=number,
                seed=seed,
            )

    systems, rounds = {"teacher": guide, "student": start}, {"student": 0, method.kind: method.rounds}
    for number in range(1, method.rounds) if evaluation.rounds else ():
        systems[f"round_{number}"], rounds[f"round_{number}"] = pupils[number], number
    systems[method.kind] = pupil
    run_free, judge, why_not = evaluation.free_run(windows.context), evaluation.judge, why_no_judge(evaluation.judge)
    written, judged = {}, {}
    for name, each in systems.items():
        written[name] = free_run.labelled(name)(corpus=corpus, model=each, settings=run_free)
        if judge is not None and why_not is None:
            judged[name] = g_eval.labelled(name)(corpus=corpus, written=written[name], settings=judge)
    return evaluate(
        corpus=corpus,
        systems=written,
        judged=judged,
        why_not_judged=why_not or "",
        rounds=rounds,
        resamples=evaluation.resamples,
        block=evaluation.block,
        seed=evaluation.seed,
    )


def check(settings: Mapping[str, Any]) -> list[str]:
    """Models are causal, whole, of one vocabulary, and have positions for the windows. Returns remarks on them."""
    remarks = check_models(settings["teacher"], settings["student"], "causal")
    windows, method = settings["windows"], settings["method"]
    longest = windows.longest
    if windows.mode == "packed" and method.aggregates:
        longest = max(longest, windows.context + method.horizon - 1)
    for role in ("teacher", "student"):
        check_positions(role, settings[role], longest)
    return remarks


def check_plan(settings: Mapping[str, Any], plan: Sequence[PlanRow]) -> str | None:
    """Where something is to be judged, the judge must answer before anything expensive starts."""
    judge = settings["evaluation"].judge
    wanted = any(row.stage.startswith("g_eval[") and row.status != "hit" for row in plan)
    return check_judge(judge) if judge is not None and wanted else None


OUTLINE = Outline("flows/distill_text.py:distill_text", pipeline, check, check_plan)
