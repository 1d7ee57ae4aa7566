"""Students of their teacher's layers on running text, the teacher in a .gguf file: every stage, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from flows.catalogue import load_catalogue, override
from flows.compare_outline import _tasks
from flows.distill_text_outline import OUTLINE, check
from flows.outlines import execute
from flows.settings import validate
from kd_core.models.loading import load_model
from tasks.export.export import export_run
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter
from tasks.store.stage import Run
from tasks.text.language_model import StudentModelSettings
from tests.tasks.tiny_models import write_gguf, write_llama
from tests.tasks.tiny_texts import run_text, text_parameters

torch.set_num_threads(1)  # tensors this small only lose by being shared out

NAME = "dad-dagger-smollm2"
CATALOGUE = load_catalogue(Path(__file__).parents[3] / "prefect.yaml")
Made = tuple[Store, Run, Artifact]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of four layers in a .gguf file."""
    root = tmp_path_factory.mktemp("gguf")
    return write_gguf(root / "four.gguf", write_llama(root / "four", layers=4))


def changes(model: Path, **student: Any) -> list[str]:
    teacher = {"name": str(model), "fit": {"alpha": 1.0, "epochs": 1, "optimizer": {"learning_rate": 0.01}}}
    given = {"from": "teacher", "layers": 2} | student
    return [f"teacher={json.dumps(teacher)}", f"student={json.dumps(given)}", "limit=900", "method.rounds=2"]


def weights(run: Made, name: str) -> dict[str, torch.Tensor]:
    found = next(stage for stage in run[1].stages if stage.name == name)
    state: dict[str, torch.Tensor] = load_model(run[0].artifact(found.stage, found.key).path / "model").state_dict()
    return state


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    store = Store(tmp_path_factory.mktemp("pruned"))
    return store, *run_text(store, *changes(model, choose="middle"), "labels.kind=hidden")


def test_the_student_starts_from_layers_of_the_teacher_before_it_was_fine_tuned(first: Made) -> None:
    names = [stage.name for stage in first[1].stages]
    assert "prune" in names
    assert "language_model[student]" not in names
    whole, tuned, small = (weights(first, name) for name in ("language_model[teacher]", "fine_tune", "prune"))
    last = "model.layers.3.mlp.up_proj.weight"
    assert not torch.equal(whole[last], tuned[last]), "the case was not tested"
    for new, old in ((0, 0), (1, 3)):
        ours = {name: weight for name, weight in small.items() if name.startswith(f"model.layers.{new}.")}
        assert ours
        for name, weight in ours.items():
            assert torch.equal(weight, whole[name.replace(f"layers.{new}.", f"layers.{old}.")])


def test_the_students_last_block_learns_and_its_first_stays(first: Made) -> None:
    before, after = weights(first, "prune"), weights(first, "dagger_train[2]")
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.startswith(("model.layers.1.", "model.norm."))}


def test_it_runs_to_its_metrics(first: Made) -> None:
    rows = pq.read_table(first[2].path / "metrics.parquet").to_pylist()
    values = {(row["system"], row["metric"]): row["value"] for row in rows}
    assert values["dad_dagger", "perplexity"] < values["student", "perplexity"]


def test_its_card_says_what_was_cut(first: Made, tmp_path: Path) -> None:
    export_run(first[0], first[1].record, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2 of the 4 layers that write (0, 3, counted from 0; all but the middle)" in card


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"layers": None}, "^student: a student from: teacher needs layers: how many of the teacher's, or which ones$"),
        ({"from": None}, "^student: layers are the teacher's: they need from: teacher$"),
        ({"name": "gpt2"}, "^student: a student from: teacher has neither name, revision nor shape of its own$"),
        ({"pretrain": {}}, "^student: pretrain is for a model described by shape, and this student is from: teacher$"),
        ({"choose": "influence"}, "^student: influence is measured on pairs, and .*\nchoose even or middle, or name"),
        ({"layers": [1, 0]}, r"each once and in their order, got \[1, 0\]$"),
    ],
)
def test_a_wrong_setting_is_said_in_a_line(model: Path, tmp_path: Path, student: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        text_parameters(tmp_path, *changes(model, **student))


@pytest.mark.parametrize("wrong", [{"trainable": "x"}, {"dtype": "x"}])
def test_what_every_model_has_is_checked_of_this_one_too(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be .* or .*, got 'x'$"):
        StudentModelSettings(from_="teacher", layers=2, **wrong)


def test_layers_that_are_not_there_are_refused_before_the_run(model: Path, tmp_path: Path) -> None:
    said = r"^student\.layers asks for 5, and the teacher has 4 layers, 0 to 3\nset student"
    with pytest.raises(ValueError, match=said):
        check(text_parameters(tmp_path, *changes(model, layers=5)))


@pytest.mark.parametrize(
    ("setting", "lower"),
    [
        (["windows.context=129"], "windows.context"),
        (["windows.mode=packed", "windows.predictions=122"], "windows.context or windows.predictions"),
        (["windows.mode=packed", "windows.predictions=2", "method.horizon=122"], "windows.context or method.horizon"),
        (["evaluation.sliding=false", "evaluation.horizon=122"], "windows.context or evaluation.horizon"),
    ],
)
def test_a_window_longer_than_the_teacher_has_positions_is_refused(
    model: Path, tmp_path: Path, setting: list[str], lower: str
) -> None:
    given = text_parameters(tmp_path, *changes(model), *setting)
    with pytest.raises(ValueError, match="teacher") as raised:
        check(given)
    assert str(raised.value).split("\n") == [
        "teacher has 128 positions, and is given 129 tokens at once",
        f"lower {lower}, or take a model with more positions",
    ]


def test_contexts_that_grow_are_those_that_slide_until_a_token_is_written(first: Made, model: Path) -> None:
    store, sliding, _ = first
    growing, _ = run_text(store, *changes(model, choose="middle"), "labels.kind=hidden", "evaluation.sliding=false")
    assert {stage.stage for stage in growing.stages if stage.outcome == "built"} == {"free_run", "evaluate"}

    def nats(run: Run) -> list[list[float]]:
        stage = next(each for each in run.stages if each.name == "free_run[student]")
        table = pq.read_table(store.artifact(stage.stage, stage.key).path / "steps.parquet").to_pylist()
        return [[row["nll"] for row in table if row["step"] == step] for step in (0, 1)]

    ours, theirs = nats(growing), nats(sliding)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
    assert ours[1] != pytest.approx(theirs[1], abs=1e-4)


def test_the_recipe_is_planned_on_another_model(model: Path, tmp_path: Path) -> None:
    given = override(CATALOGUE[NAME].parameters, [f"teacher.name={model}", "student.layers=2"])
    run, _ = execute(OUTLINE, Store(tmp_path), NAME, validate(OUTLINE.parameters, given), NullReporter(), planning=True)
    names = [row.stage for row in run.plan]
    assert names.count("prune") == 1
    assert [name for name in names if name.startswith("dagger_")] == [
        "dagger_train[1]",
        "dagger_aggregate[1]",
        "dagger_train[2]",
        "dagger_aggregate[2]",
        "dagger_train[3]",
    ]


def test_the_comparison_has_every_alpha_with_and_without_aggregation() -> None:
    given = {"settings": {}, "workers": 1, "catalogue": None, "seeds": [0]} | CATALOGUE[f"compare/{NAME}"].parameters
    _, tasks = _tasks(**given)
    methods = {(task.parameters["method"].kind, task.parameters["method"].mix) for task in tasks}
    assert methods == {(kind, alpha) for kind in ("next_token", "dad_dagger") for alpha in (0.0, 0.5, 1.0)}
