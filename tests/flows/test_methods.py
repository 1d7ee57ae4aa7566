"""The methods of `distill`: told apart by `kind`, refused in one line about that kind, and each runs to its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.distill_outline import OUTLINE, pipeline
from flows.methods import Method
from flows.outlines import execute
from flows.settings import jsonable
from flows.settings import validate as validated
from kd_core.train.llmr import LLMRSettings
from tasks.export.export import export_run
from tasks.pairs.seqkd import SeqKDSettings
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter
from tasks.store.runs import RunRecord
from tasks.store.stage import open_run
from tests.tasks.tiny_models import write_model
from tests.tasks.tiny_runs import EVALUATION, RUNTIME, SCORE, TRAINING, write_pairs

KNOWN = {"method": OUTLINE.parameters["method"]}
KINDS = ("llmr", "seqkd", "forward_kl", "reverse_kl", "js", "gkd", "minillm", "prompting_student")
SHORT = {
    "steps": 2,
    "max_source_tokens": 16,
    "sampling": {"max_new_tokens": 6},
    "batch": {"micro_batch_rows": 8, "micro_batches": 1},
    "optimizer": {"learning_rate": 1e-3},
}


def method(**given: Any) -> Any:
    return validated(KNOWN, {"method": given})["method"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_its_own_settings_and_survives_its_record(kind: str) -> None:
    chosen = method(kind=kind)
    assert chosen.kind == kind
    assert validated(KNOWN, jsonable({"method": chosen}))["method"] == chosen  # what `resume` relies on
    assert validated(KNOWN, {"method": chosen})["method"] is chosen


def test_settings_without_a_kind_are_llmrs() -> None:
    assert method(steps=5) == LLMRSettings(steps=5)
    assert validated(KNOWN, {})["method"] == LLMRSettings()


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"kind": "jss"}, ["there is no method of kind 'jss'; did you mean js?", "method.kind is one of: llmr, "]),
        ({"kind": "js", "betta": 1}, ["there is no setting method.betta; did you mean method.beta?", "method has: "]),
        ({"kind": "js", "reward": {}}, ["there is no setting method.reward", "method has: "]),
        ({"kind": "js", "beta": 1}, ["method: beta must be in (0, 1), got 1"]),
        ({"kind": "gkd", "sampling": {"top_p": 2}}, ["method.sampling: top_p must be in (0, 1], got 2"]),
        ({"kind": "minillm", "steps": "x"}, ["method.steps: input should be a valid integer"]),
        ({"kind": ["js"]}, ["there is no method of kind ", "method.kind is one of: "]),
        ({"kind": "prompting_student", "steps": 1}, ["there is no setting method.steps", "method has: kind"]),
    ],
)
def test_a_wrong_setting_is_refused_in_the_words_of_its_kind(given: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        method(**given)
    said = str(caught.value).splitlines()
    assert len(said) == len(lines)
    for line, begins in zip(said, lines, strict=True):
        assert line.startswith(begins)


def test_settings_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="method: input should be a"):
        validated(KNOWN, {"method": 3})


def test_prefects_form_takes_every_kind_and_settings_without_one() -> None:
    def flow(method: Method = LLMRSettings()) -> None: ...  # noqa: B008 (frozen)

    schema = parameter_schema(flow).model_dump_for_openapi()
    for good in (*({"kind": kind} for kind in KINDS), {"steps": 5}, {"kind": "js", "beta": 0.85, "steps": 5}):
        validate({"method": good}, schema, raise_on_error=True)
    for bad in ({"kind": "jss"}, {"kind": "js", "reward": {}}, {"kind": "prompting_student", "steps": 5}):
        with pytest.raises(ValidationError):
            validate({"method": bad}, schema, raise_on_error=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store: what does not depend on the method is built once."""
    root = tmp_path_factory.mktemp("methods")
    write_model(root / "t0", own_head=True)
    write_model(root / "t5", own_head=False, seed=1)
    return Store(root / "store")


def run(store: Store, chosen: Any) -> tuple[RunRecord, Artifact]:
    with open_run(store, name="tiny", runtime=RUNTIME) as opened:
        last = pipeline(
            dataset=write_pairs(store.root / "pairs.csv"),
            teacher=TeacherSettings(name=str(store.root.parent / "t0"), prompt="say {source}"),
            student=StudentSettings(name=str(store.root.parent / "t5")),
            score=SCORE,
            pre_distill=TRAINING,
            method=chosen,
            evaluation=EVALUATION,
        )
    return opened.record, last


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("llmr", "prompting_student")])
def test_every_method_runs_to_its_table_and_its_student_can_be_taken_away(
    store: Store, tmp_path: Path, kind: str
) -> None:
    record, evaluation = run(store, method(kind=kind, **SHORT))
    systems = pq.read_table(evaluation.path / "metrics.parquet")["system"].to_pylist()
    assert list(dict.fromkeys(systems)) == ["teacher", "pre_distilled", kind]
    trained = next(each for each in record.stages if each.stage in ("divergence", "minillm", "seqkd"))
    assert trained.label == (kind if trained.stage == "divergence" else "")
    log = pq.read_table(store.artifact(trained.stage, trained.key).path / "training_log.parquet").to_pylist()
    assert {row["step"] for row in log} == ({1, 2} if kind == "seqkd" else {0, 1, 2})
    expected = {"seqkd": "validation_loss"}.get(kind, "validation_reverse_kl")
    assert expected in {row["metric"] for row in log}
    export_run(store, record, tmp_path / "out")
    weights = "model.safetensors"
    oracle = store.artifact(trained.stage, trained.key).path / "model" / weights
    assert (tmp_path / "out" / weights).read_bytes() == oracle.read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    called = {"forward_kl": "forward KL", "reverse_kl": "reverse KL", "minillm": "MiniLLM", "seqkd": "SeqKD"}
    assert f"a student distilled by {called.get(kind, kind.upper())}" in card


@pytest.mark.parametrize("kind", ["llmr", "js", "gkd", "minillm", "seqkd"])
def test_training_that_blows_up_says_so_and_what_to_lower(store: Store, kind: str) -> None:
    more = {"reward": {"truncated": "bootstrap"}} if kind == "llmr" else {}
    chosen = method(kind=kind, **SHORT | {"optimizer": {"learning_rate": 1e38}}, **more)
    with pytest.raises(
        ValueError, match=rf"{kind}\]?: .* is (nan|inf) at step 2\nlower the learning rate of this stage$"
    ):
        run(store, chosen)


def test_the_prompted_student_is_the_student_as_it_came_and_reads_the_prompt(store: Store) -> None:
    record, evaluation = run(store, method(kind="prompting_student"))
    evaluated = ["decode", "measure"] * 2 + ["evaluate"]
    assert [each.stage for each in record.stages] == ["prepare", "teacher", "prompting_student", *evaluated]
    systems = pq.read_table(evaluation.path / "predictions.parquet").to_pylist()
    assert {row["system"] for row in systems} == {"teacher", "prompting_student"}
    other = TeacherSettings(name=str(store.root.parent / "t5"), prompt="say {source}")
    with open_run(store, name="swapped", runtime=RUNTIME):
        same = pipeline(
            dataset=write_pairs(store.root / "pairs.csv"),
            teacher=other,
            student=StudentSettings(name=str(store.root.parent / "t0")),
            method=method(kind="prompting_student"),
            evaluation=EVALUATION,
        )
    of = {row["id"]: row["prediction"] for row in systems if row["system"] == "prompting_student"}
    as_teacher = pq.read_table(same.path / "predictions.parquet").to_pylist()
    assert of == {row["id"]: row["prediction"] for row in as_teacher if row["system"] == "teacher"}


def test_what_is_odd_about_a_model_is_said_before_anything_starts(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "t5", own_head=False)
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    heard: list[str] = []

    class Ear(NullReporter):
        def warning(self, text: str) -> None:
            heard.append(text)

    model, dataset = {"name": str(teacher)}, jsonable({"dataset": write_pairs(tmp_path / "pairs.csv")})
    parameters = validated(OUTLINE.parameters, dataset | {"teacher": model, "student": model})
    execute(OUTLINE, Store(tmp_path / "store"), "tiny", parameters, Ear(), planning=True)
    assert [text.split(":")[0] for text in heard] == ["teacher.name", "student.name"]
    assert all("config.json names 5; 1 (</s>), the tokenizer's, is taken" in text for text in heard)


def test_seqkd_has_no_best_weights_to_keep() -> None:
    with pytest.raises(ValueError, match=r"seqkd writes nothing while it trains.*got keep 'reward'"):
        SeqKDSettings(keep="reward")


def test_llmr_is_held_back_and_ends_with_its_best_weights(store: Store) -> None:
    held = {"start_kl": 0.5, "reverse_kl": 0.5, "rollouts_per_source": 2, "reward": {"truncated": "bootstrap"}}
    kept = {"keep": "reverse_kl", "min_variety": 0.0, "validate_every": 1}
    short = SHORT | {"steps": 8, "optimizer": {"learning_rate": 0.05}}
    record, _ = run(store, method(**short, **held, **kept))
    trained = next(each for each in record.stages if each.stage == "llmr")
    artifact = store.artifact("llmr", trained.key)
    rows = pq.read_table(artifact.path / "training_log.parquet").to_pylist()
    reverse_kl = {row["step"]: row["value"] for row in rows if row["metric"] == "validation_reverse_kl"}
    best = min(reverse_kl, key=lambda step: reverse_kl[step])
    stats = artifact.manifest().stats
    assert (stats["kept_step"], stats["validation_reverse_kl"]) == (best, reverse_kl[best])
    assert best < max(reverse_kl), "the last is the best: nothing was tested"
    said = [text for text in stats.get("warnings", ()) if "ends as it started" in text]
    assert bool(said) == (best == 0)
