"""What teacher and student read reaches every stage: each reads its own prompt, whatever the other's is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.evaluation import System, evaluate_systems, measure_exposure
from flows.methods import train
from kd_core.models.loading import load_model, load_tokenizer
from kd_core.models.prompts import Chat, Prompt, Prompts
from kd_core.models.token_rows import TokenRows
from kd_core.train.divergence import GKDSettings, ReverseKLSettings
from kd_core.train.minillm import MiniLLMSettings
from tasks.compute.models import LoadedModel, load_artifact
from tasks.pairs import inputs
from tasks.pairs.exposure import ExposureSettings
from tasks.pairs.inputs import prompt_rows, read_split, reference_pairs
from tasks.pairs.pre_distill import pre_distill
from tasks.pairs.seqkd import SeqKDSettings
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.store.artifacts import Artifact, Store
from tasks.store.stage import open_run
from tests.tasks.tiny_models import write_chat
from tests.tasks.tiny_runs import EVALUATION, METHOD, RUNTIME, TRAINING, run_llmr

torch.set_num_threads(1)  # tensors this small only lose by being shared out

TEACHERS, STUDENTS = Chat(system="reply", user="say {source} now"), "said {source} today:"
BOTH = Prompts(TEACHERS, STUDENTS)
SHORT: dict[str, Any] = {
    "steps": 1,
    "validate_every": 0,
    "validation_rows": 4,
    "max_source_tokens": 40,
    "sampling": METHOD.sampling,
    "batch": METHOD.batch,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Artifact], StudentSettings]:
    root = tmp_path_factory.mktemp("reading")
    student = StudentSettings(name=str(write_chat(root / "b", seed=1)), prompt=STUDENTS)
    teacher = TeacherSettings(name=str(write_chat(root / "a")), chat=TEACHERS)
    return Store(root / "store"), run_llmr(Store(root / "store"), teacher, student)[1], student


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """The prompts that rows were made of."""
    found: list[Prompt] = []
    wrapped = inputs.wrapped_rows

    def watched(tokenizer: Any, prompt: Prompt, sources: Sequence[str], max_tokens: int, *, ends: bool) -> TokenRows:
        if prompt not in found:
            found.append(prompt)
        return wrapped(tokenizer, prompt, sources, max_tokens, ends=ends)

    monkeypatch.setattr(inputs, "wrapped_rows", watched)
    return found


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (METHOD, [STUDENTS, TEACHERS]),
        (SeqKDSettings(**SHORT), [STUDENTS]),
        (ReverseKLSettings(**SHORT), [STUDENTS, TEACHERS]),
        (GKDSettings(**SHORT), [STUDENTS, TEACHERS]),
        (MiniLLMSettings(**SHORT), [STUDENTS, TEACHERS]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_each_method_gives_both_what_they_are_told_to_read(
    made: Any, read: list[Prompt], method: Any, expected: list[Prompt]
) -> None:
    store, artifacts, _ = made
    with open_run(store, name="reading", runtime=RUNTIME):
        train(method, artifacts["corpus"], artifacts["teacher"], artifacts["score"], artifacts["seqkd"], BOTH, 7)
    assert read == expected


def test_pre_distillation_evaluation_and_exposure_do_too(made: Any, read: list[Prompt]) -> None:
    store, artifacts, student = made
    corpus, teacher, start = artifacts["corpus"], artifacts["teacher"], artifacts["seqkd"]
    with open_run(store, name="reading", runtime=RUNTIME):
        pre_distill(
            corpus=corpus,
            teacher=teacher,
            outputs=artifacts["score"],
            student=student,
            prompt=BOTH,
            settings=TRAINING,
            seed=5,
        )
        assert read == [STUDENTS, TEACHERS]
        read.clear()
        bare = Prompts(TEACHERS, "{source}")
        evaluate_systems(corpus, teacher, {"again": System(artifacts["llmr"])}, bare, EVALUATION)
        assert read == [TEACHERS, "{source}"]  # the teacher judges
        read.clear()
        settings = ExposureSettings(rows=3, max_length=2, max_source_tokens=40, resamples=20)
        measure_exposure(corpus, teacher, "start", start, BOTH, METHOD.reward, settings)
        assert len(read) == 2
        assert STUDENTS in read
        assert TEACHERS in read


def test_references_end_as_what_the_student_reads_has_it(made: Any) -> None:
    _, artifacts, _ = made
    student = load_artifact(artifacts["seqkd"], torch.device("cpu"))
    split = read_split(artifacts["corpus"], "validation", ("source", "target"))
    turn_end = student.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for prompts, end in ((Prompts(TEACHERS), turn_end), (BOTH, student.tokenizer.eos_token_id)):
        target = reference_pairs(student, prompts, split, TRAINING).target
        assert set(target.flat[target.offset_R1[1:] - 1].tolist()) == {end}


def test_a_model_that_reads_a_chat_ends_where_a_turn_does_though_its_files_do_not_say_so(tmp_path: Path) -> None:
    directory = write_chat(tmp_path / "silent")
    for name in ("config.json", "generation_config.json"):
        record = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(record | {"eos_token_id": 0}))
    tokenizer = load_tokenizer(directory)
    silent = LoadedModel(load_model(directory, tokenizer=tokenizer), tokenizer)
    prompt_rows(silent, "say {source}:", ["the cat"], 20)
    assert silent.model.config.eos_token_id == 0
    prompt_rows(silent, TEACHERS, ["the cat"], 20)
    assert silent.model.config.eos_token_id == [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]
