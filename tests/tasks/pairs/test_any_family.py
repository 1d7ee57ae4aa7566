"""Models of other families, by path, through every stage of a pair run, and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, pipeline

from kd_core.models.loading import load_model, load_tokenizer
from kd_core.models.policy import backend_of
from tasks.export.export import export_run
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.preflight.models import check_models
from tasks.store.artifacts import Store
from tests.tasks.tiny_models import write_bart, write_llama
from tests.tasks.tiny_runs import run_llmr

torch.set_num_threads(1)  # tensors this small only lose by being shared out


@pytest.mark.parametrize("write", [write_llama, write_bart])
def test_a_teacher_and_a_student_by_path_go_through_every_stage(tmp_path: Path, write: Callable[..., Path]) -> None:
    guide, other = write(tmp_path / "a"), write(tmp_path / "b", seed=1)
    teacher, student = TeacherSettings(name=str(guide), prompt="say {source}:"), StudentSettings(name=str(other))
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


def test_an_exported_llama_writes_in_transformers_own_pipeline(tmp_path: Path) -> None:
    guide, other = write_llama(tmp_path / "a"), write_llama(tmp_path / "b", seed=1)
    teacher, student = TeacherSettings(name=str(guide)), StudentSettings(name=str(other))
    run, _ = run_llmr(Store(tmp_path / "store"), teacher, student)
    export_run(Store(tmp_path / "store"), run.record, tmp_path / "out")
    write = pipeline("text-generation", model=str(tmp_path / "out"))
    (found,) = write("the cat", max_new_tokens=4, do_sample=False)
    assert found["generated_text"].startswith("the cat")


def test_vocabularies_padded_to_different_sizes_are_cut_to_what_the_tokenizer_names(tmp_path: Path) -> None:
    guide, other = write_llama(tmp_path / "a", vocab_size=330), write_llama(tmp_path / "b", seed=1)
    teacher, student = TeacherSettings(name=str(guide)), StudentSettings(name=str(other))
    _, made = run_llmr(Store(tmp_path / "store"), teacher, student)
    outputs = pq.read_table(made["score"].path / "outputs-00000.parquet")["token_ids"].to_pylist()
    assert max(max(ids) for ids in outputs) < 300


def test_a_loaded_model_is_run_on_the_fastest_backend(tmp_path: Path) -> None:
    for write, backend in ((write_llama, "packed"), (write_bart, "padded")):
        directory = write(tmp_path / backend)
        assert backend_of(load_model(directory, tokenizer=load_tokenizer(directory))).name == backend
