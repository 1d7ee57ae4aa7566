"""The evaluation in stages: what is shared, what is written, what a kill leaves, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from flows.evaluation import System, evaluate_systems, measure_exposure
from kd_core.losses.rewards import RewardSettings
from kd_core.metrics.bleu import SacreBleuSettings
from kd_core.metrics.bootstrap import Resamples
from kd_core.metrics.outputs import AGREEMENT
from kd_core.metrics.rouge import RougeSettings
from kd_core.models.prompts import Prompts
from kd_core.rollout.sampling import SamplingSettings
from tasks.catalog.database import query
from tasks.compute.measured import read_replicates
from tasks.compute.models import load_artifact
from tasks.pairs import decode
from tasks.pairs import measure as measure_stage
from tasks.pairs.evaluate import EvaluationSettings
from tasks.pairs.exposure import ExposureSettings
from tasks.pairs.measure import MeasureSettings, measure
from tasks.pairs.prepare import prepare
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.store.artifacts import Artifact, Store
from tasks.store.stage import Run, open_run
from tests.tasks.tiny_models import write_model
from tests.tasks.tiny_runs import EVALUATION, METHOD, RUNTIME, made_by, run_llmr, write_pairs

CHARACTERS = SacreBleuSettings(tokenizer="char")
PROMPT = "reply to [ {source} ]:"
PROMPTS = Prompts(PROMPT)
Made = tuple[Store, dict[str, Artifact]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One finished run; tests add stages to it and change none."""
    root = tmp_path_factory.mktemp("evaluate")
    teacher, student = write_model(root / "t0", own_head=True), write_model(root / "t5", own_head=False, seed=1)
    store = Store(root / "store")
    _, artifacts = run_llmr(
        store, TeacherSettings(name=str(teacher), prompt=PROMPT), StudentSettings(name=str(student))
    )
    return store, artifacts


def evaluated(
    made: Made, settings: EvaluationSettings, reward: RewardSettings = METHOD.reward, **systems: System
) -> tuple[Run, Path]:
    """A run that evaluates the given systems."""
    store, artifacts = made
    with open_run(store, name="evaluation", runtime=RUNTIME) as run:
        rewarded = replace(settings, reward=reward)
        last = evaluate_systems(artifacts["corpus"], artifacts["teacher"], systems, PROMPTS, rewarded)
    return run, last.path


def outcomes(run: Run) -> dict[str, str]:
    return {each.name: each.outcome for each in run.stages}


def rows(path: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path / f"{name}.parquet").to_pylist()
    return found


def test_a_system_under_another_name_and_beside_others_is_neither_decoded_nor_measured_again(made: Made) -> None:
    artifacts = made[1]
    systems = {"sft": System(artifacts["seqkd"]), "teacher": System(artifacts["teacher"], prompted=True)}
    run, path = evaluated(made, EVALUATION, **systems)
    assert outcomes(run) == {
        "decode[sft]": "hit",
        "measure[sft]": "hit",
        "decode[teacher]": "hit",
        "measure[teacher]": "hit",
        "evaluate": "built",
    }
    assert {(row["system"], row["baseline"]) for row in rows(path, "differences")} == {("teacher", "sft")}
    there = {(row["metric"], row["value"]) for row in rows(artifacts["evaluate"].path, "metrics")}
    assert {(row["metric"], row["value"]) for row in rows(path, "metrics")} < there


@pytest.mark.parametrize(
    ("settings", "decoded", "measured"),
    [
        (replace(EVALUATION, resamples=30), "hit", "built"),
        (replace(EVALUATION, seed=7), "hit", "built"),
        (replace(EVALUATION, rouge=RougeSettings(tokenizer="unicode")), "hit", "built"),
        (replace(EVALUATION, sacrebleu=CHARACTERS), "hit", "built"),
        (replace(EVALUATION, max_rows=5), "built", "built"),
        (replace(EVALUATION, sampling=SamplingSettings(max_new_tokens=6), sacrebleu=CHARACTERS), "built", "built"),
    ],
    ids=["resamples", "seed", "rouge", "sacrebleu", "rows", "sampling"],
)
def test_a_setting_reaches_the_stages_that_it_matters_to(
    made: Made, settings: EvaluationSettings, decoded: str, measured: str
) -> None:
    run, path = evaluated(made, settings, seqkd=System(made[1]["seqkd"]))
    assert outcomes(run) == {"decode[seqkd]": decoded, "measure[seqkd]": measured, "evaluate": "built"}
    notes = {row["metric"]: row["note"] for row in rows(path, "metrics")}
    assert ("tokenizer unicode" in notes["rouge_1"]) == (settings.rouge.tokenizer == "unicode")
    if settings.sampling is not None:  # what is written greedily is too short for a bigram
        assert "tok:char|" in notes["sacrebleu_2"]


def test_the_prompt_is_read_by_who_is_prompted(made: Made) -> None:
    teacher = made[1]["teacher"]
    _, path = evaluated(made, EVALUATION, prompted=System(teacher, prompted=True), bare=System(teacher))
    found = rows(path, "predictions")
    assert [row["system"] for row in found] == ["prompted"] * 8 + ["bare"] * 8
    assert [row["reward"] for row in found[:8]] != [row["reward"] for row in found[8:]]


def test_the_outputs_do_not_depend_on_shards_and_a_kill_costs_one(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    student = System(made[1]["seqkd"])
    _, whole = evaluated(made, replace(EVALUATION, max_source_tokens=40), seqkd=student)
    monkeypatch.setattr(decode, "BATCH_ROWS", 3)
    monkeypatch.setattr(decode, "SHARD_BATCHES", 1)
    write, calls = decode._write, 0

    def killed_at_the_third(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(decode, "_write", killed_at_the_third)
    changed = replace(EVALUATION, max_source_tokens=41)  # another key, the same outputs: no source is that long
    with pytest.raises(KeyboardInterrupt):
        evaluated(made, changed, seqkd=student)
    _, path = evaluated(made, changed, seqkd=student)
    assert calls == 3 + 1  # three shards of 3, 3 and 2 rows: two before the kill, one after
    expected, found = rows(whole, "predictions"), rows(path, "predictions")
    for name in ("reward", *AGREEMENT):
        assert [row.pop(name) for row in found] == pytest.approx([row.pop(name) for row in expected], abs=1e-4)
    assert found == expected


@pytest.mark.parametrize("num_beams", [1, 2])
def test_what_teacher_and_writer_make_of_the_outputs_is_that_of_their_stock_logits(made: Made, num_beams: int) -> None:
    store, artifacts = made
    decoding = replace(EVALUATION.decoding, num_beams=num_beams)
    student = System(artifacts["seqkd"])
    run, path = evaluated(made, replace(EVALUATION, decoding=decoding, max_rows=7), seqkd=student)
    written = rows(made_by(store, run, "decode").path, "outputs")
    teacher, writer = (load_artifact(artifacts[name], torch.device("cpu")) for name in ("teacher", "seqkd"))
    for row, source in zip(written, (each["source"] for each in rows(path, "predictions")), strict=True):
        target = torch.tensor([row["token_ids"]])
        log_p, log_q = (
            loaded.model(
                input_ids=torch.tensor([loaded.tokenizer(text)["input_ids"]]),
                decoder_input_ids=torch.cat([torch.zeros(1, 1, dtype=torch.long), target[:, :-1]], dim=1),
            )
            .logits[0, :, : loaded.num_tokens]
            .log_softmax(dim=1)
            .detach()
            .double()
            for loaded, text in ((teacher, PROMPTS.teacher.replace("{source}", source)), (writer, source))
        )
        tops = [[set(each.topk(16).indices.tolist()) for each in log_x] for log_x in (log_p, log_q)]
        expected = {
            "log_prob": log_p.gather(1, target.T).sum(),
            "teacher_entropy": -(log_p.exp() * log_p).sum(),
            "reverse_kl": (log_q.exp() * (log_q - log_p)).sum(),
            "forward_kl": (log_p.exp() * (log_p - log_q)).sum(),
            "overlap": sum(len(ours & theirs) for ours, theirs in zip(*tops, strict=True)) / 16,
        }
        assert {name: row[name] for name in AGREEMENT} == pytest.approx(
            {name: float(value) for name, value in expected.items()}, rel=1e-4, abs=1e-4
        )
        assert row["reverse_kl"] > 0.01 * row["num_tokens"]
    found = {row["metric"]: row for row in rows(path, "metrics")}
    for name, (_, scale) in AGREEMENT.items():
        mean = scale * sum(row[name] for row in written) / sum(row["num_tokens"] for row in written)
        assert found[name]["value"] == pytest.approx(mean)
        assert found[name]["low"] <= mean <= found[name]["high"]


def test_the_teacher_agrees_with_itself(made: Made) -> None:
    found = {row["metric"]: row for row in rows(made[1]["evaluate"].path, "metrics") if row["system"] == "teacher"}
    assert [found[name]["value"] for name in ("reverse_kl", "forward_kl", "overlap")] == [0, 0, 100]
    store = made[0]
    asked = query(
        store, "select distinct reverse_kl, overlap / num_tokens as share from predictions where method = 'teacher'"
    )
    assert asked.to_pylist() == [{"reverse_kl": 0.0, "share": 1.0}]


def test_token_ids_are_those_of_the_text(made: Made) -> None:
    store, artifacts = made
    by_writer = {each.manifest().key_record["inputs"]["writer"]: each for each in store.artifacts("decode")}
    stage = by_writer[artifacts["llmr"].key]
    written = rows(stage.path, "outputs")
    assert all(len(row["token_ids"]) == row["num_tokens"] for row in written)
    assert all(row["token_ids"][-1] == 1 or row["truncated"] for row in written)


def test_replicates_have_the_value_first_and_reach_every_system(made: Made) -> None:
    path = made[1]["evaluate"].path
    metrics = rows(path, "metrics")
    for system in ("teacher", "seqkd", "llmr"):
        found = read_replicates(path / "replicates.parquet", system)
        assert [vars(each) for each in found.metrics] == [
            {name: value for name, value in row.items() if name not in ("system", "split")}
            for row in metrics
            if row["system"] == system
        ]
        for each in found.metrics:
            samples = found.samples[each.metric]
            assert len(samples) == 1 + EVALUATION.resamples
            assert samples[0] == each.value or np.isnan(samples[0])
    written = [row["num_tokens"] for row in rows(path, "predictions") if row["system"] == "llmr"]
    weights = Resamples(num_outputs=8, num_resamples=EVALUATION.resamples, seed=EVALUATION.seed).weights_SN
    assert found.samples["length"] == pytest.approx(weights @ np.array(written) / 8)


def test_fewer_references_than_predictions_are_refused_in_two_lines(made: Made) -> None:
    store, artifacts = made
    by_writer = {each.manifest().key_record["inputs"]["writer"]: each for each in store.artifacts("decode")}
    fewer = replace(write_pairs(store.root / "pairs.csv"), test_share=0.05)
    message = r"^there are 8 predictions, and 4 references of the test split for them\nmeasure outputs on the corpus"
    with open_run(store, name="wrong", runtime=RUNTIME):
        corpus = prepare(dataset=fewer, seed=0, limit=None)
        with pytest.raises(ValueError, match=message):
            measure(corpus=corpus, outputs=by_writer[artifacts["llmr"].key], settings=MeasureSettings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "train"}, "split must be validation or test, got 'train'"),
        ({"resamples": 0}, "resamples must be at least 1, got 0"),
        ({"metrics": ("bleu", "f1")}, "metrics must be some of bleu, .*; got f1"),
        ({"max_rows": 0}, "max_rows must be at least 1, got 0"),
        ({"max_source_tokens": -1}, "max_source_tokens must be at least 1, or 0 for the run's, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**changes)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (
            "ja-mecab",
            r"^sacrebleu.tokenizer ja-mecab needs MeCab and ipadic, which is not installed\ninstall it with: ",
        ),
        ("flores200", r"^sacrebleu.tokenizer flores200 needs a model that is not on this machine: .*\nfetch it once"),
    ],
)
def test_a_tokenizer_that_is_not_at_hand_is_refused_with_the_settings(
    tokenizer: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure_stage, "find_spec", lambda name: None)
    monkeypatch.setattr(measure_stage, "SACREBLEU_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(sacrebleu=SacreBleuSettings(tokenizer=tokenizer))
    EvaluationSettings(sacrebleu=SacreBleuSettings(tokenizer=tokenizer), metrics=("rouge",))  # then nobody needs it
    EvaluationSettings(sacrebleu=SacreBleuSettings(tokenizer="zh"))


def exposed(made: Made, settings: ExposureSettings, student: str = "seqkd") -> tuple[Run, Path]:
    store, artifacts = made
    with open_run(store, name="exposure", runtime=RUNTIME) as run:
        arguments = (artifacts["corpus"], artifacts["teacher"], student, artifacts[student], PROMPTS, METHOD.reward)
        last = measure_exposure(*arguments, settings)
    return run, last.path


def test_the_excess_error_of_a_student_by_length_and_in_sql(made: Made) -> None:
    settings = ExposureSettings(rows=6, samples=2, max_length=5, max_source_tokens=40, resamples=20)
    run, path = exposed(made, settings)
    assert list(outcomes(run)) == ["decode[seqkd]", "decode[teacher]", "exposure[seqkd]"]
    found = rows(path, "excess_error")
    assert [row["length"] for row in found] == [1, 2, 3, 4, 5]
    assert {row["n"] for row in found} == {6}
    assert found[0]["value"] == pytest.approx(0, abs=1e-6)  # before the first token there is no prefix to differ in
    for name in ("d_student", "d_teacher"):
        curve = [row[name] for row in found]
        assert 0 < curve[0] < curve[-1]
        assert curve == sorted(curve)
    for row in found:
        assert row["value"] == pytest.approx(100 * (row["d_student"] / row["d_teacher"] - 1))
    (answer,) = query(made[0], f"select * from excess_error where run = '{run.run_id}' and length = 5").to_pylist()
    assert (answer["method"], answer["value"], answer["low"]) == ("seqkd", found[4]["value"], found[4]["low"])


def test_the_teachers_samples_serve_all_students(made: Made) -> None:
    settings = ExposureSettings(rows=5, max_length=4, max_source_tokens=40, resamples=20)
    first, _ = exposed(made, settings)
    second, _ = exposed(made, settings, "llmr")
    assert set(outcomes(first).values()) == {"built"}
    assert outcomes(second) == {"decode[llmr]": "built", "decode[teacher]": "hit", "exposure[llmr]": "built"}


def test_a_teacher_that_is_its_own_student_without_a_prompt_differs_by_the_prompt_alone(made: Made) -> None:
    store, artifacts = made
    with open_run(store, name="itself", runtime=RUNTIME):
        teacher, settings = artifacts["teacher"], ExposureSettings(rows=4, max_length=3, max_source_tokens=40)
        path = measure_exposure(
            artifacts["corpus"], teacher, "itself", teacher, Prompts("{source}"), METHOD.reward, settings
        ).path
    found = rows(path, "excess_error")
    assert all(abs(row["d_student"]) < 1e-5 for row in found)


@pytest.mark.parametrize("name", ["rows", "samples", "max_length", "resamples", "max_source_tokens"])
def test_exposure_settings_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, .*got -1"):
        ExposureSettings(**{name: -1})
