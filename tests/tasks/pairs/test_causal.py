"""Causal models through every stage of a pair run: described ones, and ones by path with a tokenizer like GPT-2's."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from flows.evaluation import measure_exposure
from kd_core.models.loading import load_model, load_tokenizer
from kd_core.models.policy import encode
from kd_core.models.prompts import Prompts
from kd_core.models.shapes import GPTNeoShape
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import greedy
from tasks.compute.models import LoadedModel, load_artifact
from tasks.export.export import export_run
from tasks.pairs.exposure import ExposureSettings
from tasks.pairs.inputs import prompt_rows
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.store.artifacts import Store
from tasks.store.stage import open_run
from tests.tasks.tiny_models import write_causal, write_model
from tests.tasks.tiny_runs import METHOD, RUNTIME, TRAINING, run_llmr

SHAPE = GPTNeoShape(hidden_size=16, num_heads=2, window_size=8)


def rows_of(rows: TokenRows) -> list[list[int]]:
    return [part.tolist() for part in rows.flat.split(rows.lengths.tolist())]


def read(directory: Path) -> LoadedModel:
    return LoadedModel(load_model(directory), load_tokenizer(directory))


@pytest.mark.parametrize("causal", [True, False])
def test_every_row_ends_in_one_end_of_sequence_whatever_the_tokenizer_appends(tmp_path: Path, causal: bool) -> None:
    tokenizer = load_tokenizer(write_causal(tmp_path) if causal else write_model(tmp_path, own_head=False))
    end, text = tokenizer.eos_token_id, "the cat sat under the tree"
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(bare) > 3
    assert rows_of(TokenRows.encode(tokenizer, [text, ""], 50)) == [[*bare, end], [end]]
    assert rows_of(TokenRows.encode(tokenizer, [text], 3)) == [[*bare[:2], end]]
    assert rows_of(TokenRows.encode(tokenizer, [text], 50, ends=False)) == [bare]


def test_a_causal_teacher_goes_straight_on_after_the_words_of_its_prompt(tmp_path: Path) -> None:
    reader = read(write_causal(tmp_path / "causal"))
    end = reader.tokenizer.eos_token_id
    (template,) = rows_of(prompt_rows(reader, "reply to {source}:", ["the cat"], 50))
    assert reader.tokenizer.decode(template) == "reply to the cat:"
    (bare,) = rows_of(prompt_rows(reader, "{source}", ["the cat"], 50))
    assert (reader.tokenizer.decode(bare[:-1]), bare[-1]) == ("the cat", end)
    encoder = read(write_model(tmp_path / "t5", own_head=False))
    assert rows_of(prompt_rows(encoder, "reply to {source}:", ["the cat"], 50))[0][-1] == 1  # T5's always


def test_a_long_source_costs_no_teacher_the_words_of_its_prompt(tmp_path: Path) -> None:
    for reader in (read(write_causal(tmp_path / "causal")), read(write_model(tmp_path / "t5", own_head=False))):
        (row,) = rows_of(prompt_rows(reader, "said {source} today", ["the cat sat on the mat " * 9], 12))
        text = reader.tokenizer.decode(row, skip_special_tokens=True)
        assert text.startswith("said the cat")
        assert text.endswith(" today")  # a causal teacher's separator: without it, it goes on with the source


def test_a_model_without_padding_is_given_its_end_of_sequence(tmp_path: Path) -> None:
    assert '"pad_token_id": null' in (write_causal(tmp_path) / "config.json").read_text()
    config = load_model(tmp_path).config
    assert config.pad_token_id == config.eos_token_id == 0


def test_described_causal_models_go_through_every_stage(tmp_path: Path) -> None:
    described = TeacherSettings(shape=SHAPE, fit=TRAINING, vocab_size=60)
    run, made = run_llmr(Store(tmp_path), described, StudentSettings(shape=SHAPE))
    assert {each.outcome for each in run.stages} == {"built"}
    start, end = (load_artifact(made[name], torch.device("cpu")).model for name in ("seqkd", "llmr"))
    assert end.config.model_type == "gpt_neo"
    assert not torch.equal(start.lm_head.weight, end.lm_head.weight)
    table = pq.read_table(made["evaluate"].path / "metrics.parquet")
    assert set(table["system"].to_pylist()) == {"teacher", "pre_distilled", "llmr"}
    with open_run(Store(tmp_path), name="exposure", runtime=RUNTIME):
        settings = ExposureSettings(rows=4, max_length=3, max_source_tokens=40, resamples=20)
        models = made["corpus"], made["teacher"], "llmr", made["llmr"]
        curve = pq.read_table(
            measure_exposure(*models, Prompts("{source}"), METHOD.reward, settings).path / "excess_error.parquet"
        )
    assert curve["length"].to_pylist() == [1, 2, 3]
    assert curve["value"][0].as_py() == pytest.approx(0, abs=1e-5)  # before the first token there is no prefix
    assert curve["d_student"][2].as_py() > curve["d_student"][0].as_py() > 0
    _, same = run_llmr(Store(tmp_path / "again"), described, StudentSettings(shape=SHAPE))
    for name in ("teacher", "seqkd", "llmr"):
        first, second = (each[name].path / "model" / "model.safetensors" for each in (made, same))
        assert first.read_bytes() == second.read_bytes(), name


@pytest.mark.parametrize("shape", [None, SHAPE], ids=["by path", "described"])
def test_a_causal_teacher_by_path_teaches_a_causal_student(tmp_path: Path, shape: GPTNeoShape | None) -> None:
    by_path, other = write_causal(tmp_path / "a"), write_causal(tmp_path / "b", seed=1)
    student = StudentSettings(shape=shape) if shape is not None else StudentSettings(name=str(other))
    teacher = TeacherSettings(name=str(by_path), prompt="reply to [ {source} ]:")
    _, made = run_llmr(Store(tmp_path / "store"), teacher, student)
    outputs = pq.read_table(made["score"].path / "outputs-00000.parquet")["token_ids"].to_pylist()
    assert max(max(ids) for ids in outputs) < 300  # never a padding row of the head's 320
    config = load_artifact(made["llmr"], torch.device("cpu")).model.config
    assert (config.model_type, config.eos_token_id, config.pad_token_id) == ("gpt_neo", 0, 0)


def test_a_causal_student_is_exported_with_code_that_runs(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run, made = run_llmr(store, TeacherSettings(shape=SHAPE, fit=TRAINING, vocab_size=60), StudentSettings(shape=SHAPE))
    assert export_run(store, run.record, tmp_path / "out") == "AutoModelForCausalLM"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    (code,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    student = load_artifact(made["llmr"], torch.device("cpu"))
    prompt, mask = TokenRows.encode(student.tokenizer, ["hello , how are you ?"], 50).batch(torch.tensor([0]), 0)
    with torch.no_grad():
        written = greedy(student.model, encode(student.model, prompt, mask), 6, num_tokens=student.num_tokens)
    assert ast.literal_eval(done.stdout) == student.tokenizer.batch_decode(written.tokens_BT, skip_special_tokens=True)
