"""Models of other families, by path, through every stage of a pair run, and exported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, pipeline

from kd_core.models.loading import load_model, load_tokenizer
from kd_core.models.policy import backend_of, encode
from kd_core.models.prompts import Chat, wrapped_rows
from kd_core.rollout.sampling import greedy
from tasks.compute.models import load_artifact
from tasks.export.export import export_run
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.preflight.models import check_models
from tasks.store.artifacts import Store
from tests.tasks.tiny_models import write_bart, write_chat, write_llama
from tests.tasks.tiny_runs import METHOD, run_llmr

torch.set_num_threads(1)  # tensors this small only lose by being shared out


@pytest.mark.parametrize("write", [write_llama, write_bart])
def test_a_teacher_and_a_student_by_path_go_through_every_stage(tmp_path: Path, write: Callable[..., Path]) -> None:
    teacher_path, student_path = write(tmp_path / "a"), write(tmp_path / "b", seed=1)
    teacher, student = (
        TeacherSettings(name=str(teacher_path), prompt="say {source}:"),
        StudentSettings(name=str(student_path)),
    )
    check_models(teacher, student)
    run, made = run_llmr(Store(tmp_path / "store"), teacher, student)
    assert {each.outcome for each in run.stages} == {"built"}
    table = pq.read_table(made["evaluate"].path / "metrics.parquet")
    assert set(table["system"].to_pylist()) == {"teacher", "pre_distilled", "llmr"}
    start, end = (load_model(made[name].path / "model") for name in ("seqkd", "llmr"))
    assert not all(torch.equal(*pair) for pair in zip(start.parameters(), end.parameters(), strict=True))
    _, same = run_llmr(Store(tmp_path / "again"), teacher, student)
    weights = [each["llmr"].path / "model" / "model.safetensors" for each in (made, same)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    auto = export_run(Store(tmp_path / "store"), run.record, tmp_path / "out")
    exported = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoModelForSeq2SeqLM": AutoModelForSeq2SeqLM}[auto]
    assert torch.equal(exported.from_pretrained(tmp_path / "out").lm_head.weight, end.lm_head.weight)
    assert end.config.model_type in (tmp_path / "out" / "README.md").read_text()


def test_a_model_that_chats_teaches_one_that_reads_the_same_chat(tmp_path: Path) -> None:
    teacher_path, student_path = write_chat(tmp_path / "a"), write_llama(tmp_path / "b", seed=1)
    tokenizer = load_tokenizer(teacher_path)
    chat = Chat(system="reply", user="say {source} now", options={"brief": True})
    tokenizer.chat_template, template = None, tokenizer.chat_template
    tokenizer.save_pretrained(student_path)  # a base model of the family: same tokens, no template, one end
    (student_path / "chat_template.jinja").unlink(missing_ok=True)
    teacher, student = TeacherSettings(name=str(teacher_path), chat=chat), StudentSettings(name=str(student_path))
    run, made = run_llmr(Store(tmp_path / "store"), teacher, student)
    trained = load_artifact(made["llmr"], torch.device("cpu"))
    assert trained.tokenizer.chat_template == template
    assert set(trained.model.config.eos_token_id) >= {tokenizer.convert_tokens_to_ids("<|im_end|>"), 0}
    export_run(Store(tmp_path / "store"), run.record, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "system: reply\nuser: say {source} now\n(brief: True)" in card
    assert "The student reads the same." in card
    (code,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = wrapped_rows(trained.tokenizer, chat, ["hello , how are you ?"], 50)
    with torch.no_grad():
        memory = encode(trained.model, *rows.batch(torch.tensor([0]), 0))
        written = greedy(trained.model, memory, METHOD.sampling.max_new_tokens, num_tokens=trained.num_tokens)
    assert ast.literal_eval(done.stdout) == trained.tokenizer.batch_decode(written.tokens_BT, skip_special_tokens=True)
    write = pipeline("text-generation", model=str(tmp_path / "out"))
    (found,) = write(chat.messages("the cat"), max_new_tokens=4, do_sample=False)
    assert found["generated_text"][-1]["role"] == "assistant"


def test_an_exported_llama_writes_in_transformers_own_pipeline(tmp_path: Path) -> None:
    teacher_path, student_path = write_llama(tmp_path / "a"), write_llama(tmp_path / "b", seed=1)
    teacher, student = TeacherSettings(name=str(teacher_path)), StudentSettings(name=str(student_path))
    run, _ = run_llmr(Store(tmp_path / "store"), teacher, student)
    export_run(Store(tmp_path / "store"), run.record, tmp_path / "out")
    write = pipeline("text-generation", model=str(tmp_path / "out"))
    (found,) = write("the cat", max_new_tokens=4, do_sample=False)
    assert found["generated_text"].startswith("the cat")


def test_vocabularies_padded_to_different_sizes_are_cut_to_what_the_tokenizer_names(tmp_path: Path) -> None:
    teacher_path, student_path = write_llama(tmp_path / "a", vocab_size=330), write_llama(tmp_path / "b", seed=1)
    teacher, student = TeacherSettings(name=str(teacher_path)), StudentSettings(name=str(student_path))
    _, made = run_llmr(Store(tmp_path / "store"), teacher, student)
    outputs = pq.read_table(made["score"].path / "outputs-00000.parquet")["token_ids"].to_pylist()
    assert max(max(ids) for ids in outputs) < 300


def test_a_loaded_model_is_run_on_the_fastest_backend(tmp_path: Path) -> None:
    for write, backend in ((write_llama, "packed"), (write_bart, "padded")):
        directory = write(tmp_path / backend)
        assert backend_of(load_model(directory, tokenizer=load_tokenizer(directory))).name == backend
