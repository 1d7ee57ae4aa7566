"""`export_run`: a directory that transformers loads, a card whose code runs, and nothing half-written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from kd_core.models.loading import load_model, load_tokenizer
from tasks.export.export import export_run
from tasks.export.markdown import escape, fenced
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.store.artifacts import Artifact, Store
from tasks.store.files import read_json, write_json
from tasks.store.runs import RunRecord
from tests.tasks.tiny_models import write_model
from tests.tasks.tiny_runs import run_llmr

PROMPT = "reply | to `x` ```\n<b>[ {source} ]</b>:"
Made = tuple[Store, RunRecord, dict[str, Artifact]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One finished run, shared: no test here changes it."""
    root = tmp_path_factory.mktemp("export")
    teacher, student = write_model(root / "t0", own_head=True), write_model(root / "t5", own_head=False, seed=1)
    store = Store(root / "store")
    run, artifacts = run_llmr(
        store,
        TeacherSettings(name=str(teacher), prompt=PROMPT),
        StudentSettings(name=str(student)),
        name="a|run <script>`x`",
    )
    return store, run.record, artifacts


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    """The same run in a store of its own, to be spoilt."""
    root = tmp_path / "copy"
    shutil.copytree(made[0].root, root)
    store = Store(root)
    return store, made[1], {name: store.artifact(each.stage, each.key) for name, each in made[2].items()}


@pytest.fixture(autouse=True)
def nothing_half_written(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob("*.partial"))


def test_transformers_loads_it_and_it_writes_what_the_artifact_does(made: Made, tmp_path: Path) -> None:
    store, record, artifacts = made
    export_run(store, record, tmp_path / "out")
    model, tokenizer = (each.from_pretrained(tmp_path / "out") for each in (AutoModelForSeq2SeqLM, AutoTokenizer))
    oracle = artifacts["llmr"].path / "model"
    assert tokenizer.get_vocab() == load_tokenizer(oracle).get_vocab()
    inputs = tokenizer(["the cat sat", "good morning"], return_tensors="pt", padding=True)
    ours, theirs = (each.generate(**inputs, max_new_tokens=8) for each in (model, load_model(oracle)))
    assert torch.equal(ours, theirs)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in oracle.iterdir()} | {
        "README.md"
    }


def test_a_run_without_llmr_gives_its_seqkd_student(made: Made, tmp_path: Path) -> None:
    store, record, artifacts = made
    stages = [each for each in record.stages if each.stage != "llmr"]
    export_run(store, replace(record, stages=stages), tmp_path / "out")
    weights = "model.safetensors"
    oracle = artifacts["seqkd"].path / "model" / weights
    assert (tmp_path / "out" / weights).read_bytes() == oracle.read_bytes()
    assert "a student distilled by SeqKD" in (tmp_path / "out" / "README.md").read_text()


def test_the_code_of_the_card_runs(made: Made, tmp_path: Path) -> None:
    store, record, _ = made
    export_run(store, record, tmp_path / "out")
    (code,) = re.findall(r"```python\n(.*?)\n```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert "max_new_tokens=6" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['")


def test_the_card_says_what_the_store_knows(made: Made, tmp_path: Path) -> None:
    store, record, artifacts = made
    export_run(store, record, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text2text-generation",
        "tags": ["t5", "distillation", "knowledge-distillation", "llmr"],
    }
    headings = re.findall("^## (.*)$", body, re.MULTILINE)
    assert headings[:5] == ["What it is", "Data", "Teacher", "Method and settings", "Metrics"]
    assert headings[5:] == ["How to use", "How it was made", "Licence"]
    parameters = artifacts["seqkd"].manifest().stats["parameters"]
    assert f"of {parameters:,} parameters, trained by LLMR" in body
    assert "On the test split, n = 8 outputs" in body
    assert re.search(r"\| metric \| teacher \| pre-distilled \| LLMR \|", body)
    number = r"-?[\d.]+"
    interval = rf"{number} \\\[{number}, {number}\\\]"
    assert re.search(rf"\| reward \(nats/token\) \| {interval} \| {interval} \| {interval} \|", body)
    assert "| metric | minus pre-distilled, the start | minus teacher |" in body
    assert all(each.key in body for each in artifacts.values())
    assert "transformers 5" in body


def test_the_card_names_each_stage_of_a_kind_with_its_own_seconds(made: Made, tmp_path: Path) -> None:
    store, record, _ = made
    export_run(store, record, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    decoded = [each for each in record.stages if each.stage == "decode"]
    assert len(decoded) == 3
    for each in decoded:
        seconds = store.artifact(each.stage, each.key).manifest().seconds
        assert f"| `{each.name}` | `{each.key}` | {seconds:.1f} |" in card


def test_no_path_of_the_machine_gets_out(made: Made, tmp_path: Path) -> None:
    store, record, _ = made
    parameters = {
        "dataset": {"path": str(store.root / "pairs.csv")},
        "teacher": {"name": str(store.root.parent / "t0")},
    }
    export_run(store, replace(record, parameters=parameters), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Source: files, pairs.csv." in card
    assert "The teacher is a local model (t0) whose files hash to" in card
    assert str(store.root.parent) not in card
    assert str(tmp_path) not in card


def test_text_from_settings_is_shown_and_does_nothing(made: Made, tmp_path: Path) -> None:
    store, record, _ = made
    export_run(store, record, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# a\\|run &lt;script&gt;\\`x\\`: a student" in card
    assert f"````\n{PROMPT}\n````" in card  # a longer fence than the prompt's own
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", card, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside
    for line in outside.split("\n"):
        if line.startswith("|"):  # a table: as many cells as its first row
            assert line.endswith("|")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("`x`", r"\`x\`"),
        ("one\ntwo\r\n# three", r"one two \# three"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("&lt;", "&amp;lt;"),
        ("[a](b)", r"\[a\](b)"),
        ("back\\slash", r"back\\slash"),
        ("\u202eleft\x1b", "left"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_a_fence_outlasts_every_run_of_backticks() -> None:
    assert fenced("a ```` b") == "`````\na ```` b\n`````"
    assert fenced("plain", "json") == "```json\nplain\n```"


def test_a_directory_that_holds_something_is_left_alone(made: Made, tmp_path: Path) -> None:
    store, record, _ = made
    (tmp_path / "out").mkdir()
    export_run(store, record, tmp_path / "out")  # an empty one is taken
    before = (tmp_path / "out" / "README.md").read_bytes()
    for taken in (tmp_path / "out", tmp_path / "out" / "README.md"):
        with pytest.raises(ValueError, match=r"not empty\ngive the name of a new directory"):
            export_run(store, record, taken)
    assert (tmp_path / "out" / "README.md").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"state": "failed"}, "it is failed\n`distill resume"),
        ({"state": "running", "process_started": ""}, "it is crashed\n`distill resume"),
        ({"stages": []}, "trained no student: its stages are none\n"),
    ],
)
def test_a_run_without_a_finished_student_is_refused(
    made: Made, tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    store, record, _ = made
    with pytest.raises(ValueError, match=problem):
        export_run(store, replace(record, **change), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: shutil.rmtree(path), "was deleted\n`distill run"),
        (lambda path: (path / "model" / "config.json").unlink(), "config.json is missing\n`distill run"),
        (
            lambda path: flip(path / "model" / "model.safetensors"),
            "is not what it was: its content has changed\n`distill run",
        ),
    ],
)
def test_a_student_that_is_gone_or_damaged_is_refused(
    copied: Made, tmp_path: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    store, record, artifacts = copied
    spoil(artifacts["llmr"].path)
    with pytest.raises(ValueError, match=problem):
        export_run(store, record, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_store_that_may_only_be_read_is_enough(copied: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store, record, _), as_it_is = copied, Path.open

    def read_only(path: Path, mode: str = "r", *others: Any, **named: Any) -> Any:
        if path.is_relative_to(store.root) and set(mode) & set("wax+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return as_it_is(path, mode, *others, **named)

    monkeypatch.setattr(Path, "open", read_only)
    export_run(store, record, tmp_path / "student")
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_a_full_disk_leaves_nothing(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    store, record, _ = made
    monkeypatch.setattr("tasks.export.export.shutil.copyfile", full)
    with pytest.raises(ValueError, match=r"cannot write .*: No space left on device\n"):
        export_run(store, record, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_other_stages_made_may_be_gone(copied: Made, tmp_path: Path) -> None:
    store, record, artifacts = copied
    for name in ("corpus", "teacher", "score", "seqkd", "evaluate"):
        shutil.rmtree(artifacts[name].path)
    export_run(store, record, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("Not known: this stage is no longer in the store.") == 3
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out") is not None


def test_hub_names_stand_in_the_front_matter(copied: Made, tmp_path: Path) -> None:
    store, record, artifacts = copied
    change = {
        "seqkd": ("student", {"hub": "google-t5/t5-base", "revision": "abc", "dtype": "float32"}),
        "corpus": ("dataset", {"source": "hub", "name": "abisee/cnn_dailymail", "config_name": "3.0.0"}),
        "teacher": ("settings", {"hub": "bigscience/T0_3B", "revision": None, "dtype": "bfloat16"}),
    }
    for name, (field, value) in change.items():
        path = artifacts[name].path / "manifest.json"
        content = read_json(path)
        content["key_record"]["settings"][field] = value
        write_json(path, content)
    export_run(store, record, tmp_path / "out")
    _, front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert (matter["base_model"], matter["datasets"]) == ("google-t5/t5-base", ["abisee/cnn_dailymail"])
    assert "from google-t5/t5-base (revision abc)." in body
    assert "The teacher is bigscience/T0\\_3B (revision not pinned)." in body
