"""Students made of their teacher's layers, through every stage of a run, and what their card says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from flows.distill_outline import check, pipeline
from flows.settings import signature, validate
from kd_core.models.pruning import block_influence
from kd_core.models.shapes import GPTNeoShape, T5Shape
from tasks.compute.models import load_artifact
from tasks.export.export import export_run
from tasks.pairs.prompting_student import PromptingStudentSettings
from tasks.pairs.starts.prune import Calibration, calibration_rows
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.store.artifacts import Artifact, Store
from tests.tasks.tiny_models import write_bart, write_gguf, write_llama
from tests.tasks.tiny_runs import TRAINING, made_by, run_pipeline

CPU = torch.device("cpu")


def pruned(layers: Any, choose: Any = "even") -> StudentSettings:
    return StudentSettings(from_="teacher", layers=layers, choose=choose)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TeacherSettings:
    return TeacherSettings(name=str(write_llama(tmp_path_factory.mktemp("llama"), layers=4)), prompt="say {source}:")


def model_in(artifact: Artifact) -> Any:
    return load_artifact(artifact, CPU).model


@pytest.mark.parametrize(
    ("layers", "choose", "kept"), [(3, "even", [0, 2, 3]), (2, "middle", [0, 3]), ((1, 2), "even", [1, 2])]
)
def test_a_run_starts_from_the_layers_that_were_asked_for(
    llama: TeacherSettings, tmp_path: Path, layers: Any, choose: Any, kept: list[int]
) -> None:
    store = Store(tmp_path)
    run = run_pipeline(store, llama, pruned(layers, choose))
    start = made_by(store, run, "prune")
    stats = start.manifest().stats
    assert (stats["kept_layers"], stats["teacher_layers"]) == (kept, 4)
    whole, small = model_in(made_by(store, run, "teacher")), model_in(start)
    for new, old in enumerate(kept):
        ours, theirs = small.model.layers[new].state_dict(), whole.model.layers[old].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(model_in(made_by(store, run, "llmr")).model.layers) == len(kept)
    assert "validation_loss_before" in made_by(store, run, "pre_distill").manifest().stats


def test_all_of_the_teacher_is_a_start_too(llama: TeacherSettings, tmp_path: Path) -> None:
    run = run_pipeline(Store(tmp_path), llama, StudentSettings(from_="teacher"))
    assert "prune" not in {each.stage for each in run.stages}
    assert len(model_in(made_by(Store(tmp_path), run, "llmr")).model.layers) == 4


def test_influence_is_measured_on_the_corpus_and_written_down(llama: TeacherSettings, tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = run_pipeline(store, llama, pruned(2, "influence"))
    stats = made_by(store, run, "prune").manifest().stats
    influence = stats["block_influence"]
    ranked = sorted(range(4), key=lambda number: influence[number], reverse=True)
    assert stats["kept_layers"] == sorted(ranked[:2])
    corpus, teacher = made_by(store, run, "prepare"), made_by(store, run, "teacher")
    sample = Calibration(prompt="say {source}:", max_source_tokens=16, max_target_tokens=8)
    rows = calibration_rows(load_artifact(teacher, CPU), corpus, sample)
    assert len(rows) == stats["calibration_rows"] == 64 == pq.read_metadata(corpus.path / "train.parquet").num_rows
    assert stats["calibration_tokens"] == sum(row["input_ids"].numel() for row in rows)
    assert block_influence(model_in(teacher), rows) == influence
    again = run_pipeline(Store(tmp_path / "again"), llama, pruned(2, "influence"))
    assert made_by(Store(tmp_path / "again"), again, "prune").manifest().stats["block_influence"] == influence


def test_fewer_rows_than_there_are_come_from_all_over_the_corpus(llama: TeacherSettings, tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = run_pipeline(store, llama, pruned(2))
    corpus, loaded = made_by(store, run, "prepare"), load_artifact(made_by(store, run, "teacher"), CPU)
    rows = [
        [row["input_ids"].tolist() for row in calibration_rows(loaded, corpus, sample)]
        for sample in (
            Calibration(prompt="{source}", max_source_tokens=16, max_target_tokens=8, rows=number) for number in (4, 64)
        )
    ]
    assert rows[0] == rows[1][::16]


def test_layers_that_do_not_depend_on_the_corpus_are_cut_once_for_all_corpora(
    llama: TeacherSettings, tmp_path: Path
) -> None:
    runs = [run_pipeline(Store(tmp_path), llama, pruned(2, choose)) for choose in ("middle", "influence")]
    middle, influence = (
        next(
            Store(tmp_path).artifact(each.stage, each.key).manifest().key_record
            for each in run.stages
            if each.stage == "prune"
        )
        for run in runs
    )
    assert middle["inputs"].keys() == {"teacher"}
    assert middle["settings"] == {"layers": 2, "choose": "middle"}
    assert influence["inputs"].keys() == {"teacher", "corpus"}
    taught = [made_by(Store(tmp_path), run, "pre_distill").manifest().key_record for run in runs]
    assert (
        taught[0]["settings"]["student"] == taught[1]["settings"]["student"] == {"from": "teacher", "dtype": "float32"}
    )
    assert taught[0]["inputs"]["start"] != taught[1]["inputs"]["start"]


@pytest.mark.parametrize("shape", [T5Shape(num_layers=2, num_decoder_layers=3), GPTNeoShape(num_layers=3)])
def test_a_teacher_that_was_fitted_here_is_pruned_too(tmp_path: Path, shape: T5Shape | GPTNeoShape) -> None:
    store = Store(tmp_path)
    run = run_pipeline(store, TeacherSettings(shape=shape, fit=TRAINING, vocab_size=60), pruned(2, "influence"))
    config = model_in(made_by(store, run, "llmr")).config
    if isinstance(shape, T5Shape):
        assert (config.num_layers, config.num_decoder_layers) == (2, 2)
    else:
        assert config.num_layers == 2


def test_the_card_says_what_was_cut_and_how(llama: TeacherSettings, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run = run_pipeline(store, llama, pruned(2, "influence"))
    export_run(store, run.record, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    stats = made_by(store, run, "prune").manifest().stats
    kept = ", ".join(map(str, stats["kept_layers"]))
    assert "from its teacher's own weights" in card
    assert f"2 of the 4 layers that write ({kept}, counted from 0; those of most block influence" in card
    assert f"Influence on 64 training pairs, {stats['calibration_tokens']:,} tokens" in card
    assert len(re.findall(r"\| (?:kept|cut) +\|", card)) == 4
    assert yaml.safe_load(card.split("---")[1]).get("base_model") is None


@pytest.mark.parametrize(("layers", "how"), [((0, 1, 3), "named one by one"), (3, "evenly spread")])
def test_the_card_names_the_layers(llama: TeacherSettings, tmp_path: Path, layers: Any, how: str) -> None:
    store = Store(tmp_path / "store")
    run = run_pipeline(store, llama, pruned(layers))
    export_run(store, run.record, tmp_path / "out")
    kept = ", ".join(map(str, made_by(store, run, "prune").manifest().stats["kept_layers"]))
    assert (
        f"3 of the 4 layers that write ({kept}, counted from 0; {how})" in (tmp_path / "out" / "README.md").read_text()
    )


def test_a_pruned_student_is_prompted_as_it_is_and_the_whole_teacher_is_not(
    llama: TeacherSettings, tmp_path: Path
) -> None:
    method = PromptingStudentSettings()
    run = run_pipeline(Store(tmp_path), llama, pruned(2), method)
    assert "prune" in {each.stage for each in run.stages}
    with pytest.raises(ValueError, match=r"^a student from: teacher is the teacher itself, .*\ngive it fewer layers"):
        check({"teacher": llama, "student": StudentSettings(from_="teacher"), "method": method})


def test_layers_that_are_not_there_are_refused_before_the_run(llama: TeacherSettings, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "four.gguf", Path(llama.name or ""))
    bart = write_bart(tmp_path / "bart")
    for teacher, total in (
        (llama, 4),
        (TeacherSettings(name=str(path)), 4),
        (TeacherSettings(name=str(bart)), 2),
        (TeacherSettings(shape=T5Shape(num_layers=4, num_decoder_layers=3), fit=TRAINING), 3),
        (TeacherSettings(shape=GPTNeoShape(num_layers=5), fit=TRAINING), 5),
    ):
        check({"teacher": teacher, "student": pruned(total)})
        said = (
            rf"^student\.layers asks for {total + 1}, and the teacher has {total} layers, 0 to {total - 1}\nset student"
        )
        with pytest.raises(ValueError, match=said):
            check({"teacher": teacher, "student": pruned(total + 1)})
        with pytest.raises(
            ValueError, match=rf"^student\.layers names layer {total}, and the teacher has {total} layers"
        ):
            check({"teacher": teacher, "student": pruned((0, total))})
    check({"teacher": TeacherSettings(name="some/where-on-the-hub"), "student": pruned(999)})


WRONG = [
    ({"layers": 2, "name": "gpt2"}, "layers are the teacher's: they need from: teacher"),
    ({"from": "teacher", "layers": 0}, "layers must be at least 1, got 0"),
    ({"from": "teacher", "layers": []}, "each once and in their order, got []"),
    ({"from": "teacher", "layers": [1, 0]}, "each once and in their order, got [1, 0]"),
    ({"from": "teacher", "layers": [1, 1]}, "each once and in their order, got [1, 1]"),
    ({"from": "teacher", "layers": [-1, 1]}, "counted from 0, each once and in their order, got [-1, 1]"),
    ({"from": "teacher", "layers": [0, 1], "choose": "middle"}, "and here they are named"),
    ({"from": "teacher", "choose": "middle"}, "choose is 'middle'"),
    ({"from": "teacher", "layers": 2, "choose": "best"}, "'even', 'middle' or 'influence', got 'best'"),
]


@pytest.mark.parametrize(("student", "said"), WRONG)
def test_a_wrong_setting_is_said_in_a_line(student: dict[str, Any], said: str) -> None:
    known = {"student": signature(pipeline)["student"]}
    with pytest.raises(ValueError, match=rf"^student.*{re.escape(said)}") as refused:
        validate(known, {"student": student})
    assert "\n" not in str(refused.value)


def test_settings_are_read_as_they_are_written() -> None:
    known = {"student": signature(pipeline)["student"]}
    assert validate(known, {"student": {"from": "teacher", "layers": [0, 2]}})["student"] == pruned((0, 2))
    given = {"from": "teacher", "layers": 20, "choose": "influence"}
    assert validate(known, {"student": given})["student"] == pruned(20, "influence")
