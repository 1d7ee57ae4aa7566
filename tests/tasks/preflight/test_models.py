"""`check_models`: what is wrong with named models is said before anything is computed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_core.models.loading import ModelSettings, load_model, load_tokenizer
from kd_core.models.shapes import GPTNeoShape, T5Shape
from kd_core.train.supervised import SupervisedSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.preflight.models import check_models, positions_of
from tests.tasks.tiny_models import TEXTS, write_bart, write_causal, write_llama, write_model, write_spiece

SMALL = ModelSettings(shape=T5Shape())


def named(directory: Path) -> TeacherSettings:
    return TeacherSettings(name=str(directory))


def test_where_nothing_is_named_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, time; from types import SimpleNamespace as S; from tasks.preflight.models import check_models;"
        "check_models(*2 * [S(name=None, shape=S(kind='seq2seq'))]);"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_of_another_kind_than_the_method_needs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"student\.shape describes another kind of model\n.*encoder–decoder"):
        check_models(SMALL, ModelSettings(shape=GPTNeoShape()), "seq2seq")
    with pytest.raises(ValueError, match=r"teacher\.name: .*another kind of model\nuse a causal language model"):
        check_models(named(write_model(tmp_path, own_head=True)), ModelSettings(shape=GPTNeoShape()), "causal")


def test_running_text_is_read_by_any_causal_model(tmp_path: Path) -> None:
    check_models(named(write_llama(tmp_path)), ModelSettings(shape=GPTNeoShape()), "causal")


def test_where_either_kind_will_do_both_models_are_of_the_same(tmp_path: Path) -> None:
    causal, written = ModelSettings(shape=GPTNeoShape()), named(write_model(tmp_path, own_head=True))
    check_models(causal, causal)
    for teacher in (SMALL, written):
        with pytest.raises(
            ValueError, match=r"^the teacher is an enc.* and the student is a causal .*\nname or describe"
        ):
            check_models(teacher, causal)


def test_described_models_have_nothing_to_check() -> None:
    check_models(TeacherSettings(shape=T5Shape(), fit=SupervisedSettings()), SMALL)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("own_head", [False, True])
def test_whole_models_pass(tmp_path: Path, own_head: bool, sharded: bool) -> None:
    teacher, student = write_model(tmp_path / "a", own_head=own_head), write_model(tmp_path / "b", own_head=False)
    if sharded:
        load_model(teacher).save_pretrained(teacher, max_shard_size="10KB")
        (teacher / "model.safetensors").unlink()
        assert len(list(teacher.glob("*.safetensors"))) > 1
    check_models(named(teacher), ModelSettings(name=str(student)))
    check_models(named(teacher), SMALL)
    check_models(named(teacher), ModelSettings(name=str(teacher)))


def change_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def pointer(name: str) -> Callable[[Path], object]:
    """What git leaves of a file where git-lfs is not installed."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n"
    return lambda directory: (directory / name).write_text(text)


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (lambda d: shutil.rmtree(d), "does not exist"),
    (lambda d: (d / "config.json").unlink(), "has no config.json"),
    (lambda d: (d / "spiece.model").unlink(), "has no tokenizer"),
    (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "has no model.safetensors\n.*pickled"),
    (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-1]), "is damaged: "),
    *((pointer(n), f"{n} is a Git LFS pointer") for n in ("model.safetensors", "spiece.model", "config.json")),
    (lambda d: change_config(d, model_type="llama", architectures=["LlamaModel"]), "LlamaModel, which writes no text"),
    (lambda d: change_config(d, num_decoder_layers=2), "decoder.block.1.* is missing"),
    (lambda d: change_config(d, d_ff=32), r"has the size \[24, 16\], not \[32, 16\]"),
    (lambda d: change_config(d, vocab_size=200), r"weight has the size \[192, 16\], not \[200, 16\]"),
    (lambda d: change_config(d, num_heads=-1), "describes no model"),
    (lambda d: change_config(d, d_model="wide"), "describes no model"),
]


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(("spoil", "problem"), BROKEN)
def test_a_broken_model_is_named_with_its_role(
    tmp_path: Path, role: str, spoil: Callable[[Path], object], problem: str
) -> None:
    models = {each: write_model(tmp_path / each, own_head=False) for each in ("teacher", "student")}
    spoil(models[role])
    with pytest.raises(ValueError, match=rf"^{role}\.name: .*{problem}") as refused:
        check_models(named(models["teacher"]), ModelSettings(name=str(models["student"])))
    assert len(str(refused.value).split("\n")) == 2


def test_what_is_odd_about_a_model_is_remarked_with_its_role(tmp_path: Path) -> None:
    teacher, student = write_model(tmp_path / "a", own_head=True), write_model(tmp_path / "b", own_head=False)
    assert check_models(named(teacher), ModelSettings(name=str(student))) == []
    change_config(student, eos_token_id=5)
    (said,) = check_models(named(teacher), ModelSettings(name=str(student)))
    assert re.match(r"student\.name: .*config\.json names 5; 1 .</s>., the tokenizer's, is taken", said)
    tokenizer = load_tokenizer(teacher)
    tokenizer.add_tokens([f"<user_{i}>" for i in range(37)])
    tokenizer.save_pretrained(teacher)
    with pytest.raises(ValueError, match=r"^teacher\.name: .* and the embedding rows for 192: 5 have none\nresize"):
        check_models(named(teacher), ModelSettings(name=str(student)))


def test_positions_are_what_the_config_calls_them(tmp_path: Path) -> None:
    path = write_llama(tmp_path) / "config.json"
    assert positions_of(named(tmp_path)) == 128
    config = json.loads(path.read_text())
    del config["max_position_embeddings"]
    path.write_text(json.dumps(config | {"n_positions": 64}))
    assert positions_of(named(tmp_path)) == 64
    path.write_text(json.dumps(config))
    assert positions_of(named(tmp_path)) is None  # ALiBi has none


def test_a_pointer_is_said_to_be_one_wherever_a_model_is_read(tmp_path: Path) -> None:
    directory = write_causal(tmp_path)
    pointer("spiece.model")(directory)  # nobody reads it: the tokenizer is in tokenizer.json
    assert check_models(named(directory), ModelSettings(shape=GPTNeoShape())) == []
    for name, read in (("tokenizer.json", load_tokenizer), ("model.safetensors", load_model)):
        pointer(name)(directory)
        with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer, .*\n.*git lfs pull"):
            read(directory)


def test_the_two_files_of_gpt_2s_tokenizer_are_one(tmp_path: Path) -> None:
    directory = write_causal(tmp_path / "a")
    whole = load_tokenizer(directory)
    parts = json.loads((directory / "tokenizer.json").read_text())["model"]
    (directory / "vocab.json").write_text(json.dumps(parts["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *map(" ".join, parts["merges"])])
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer: neither .* nor vocab\.json with merges\.txt\n"):
        check_models(named(directory), ModelSettings(shape=GPTNeoShape()))
    (directory / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    assert check_models(named(directory), ModelSettings(shape=GPTNeoShape())) == []
    assert load_tokenizer(directory)("the cat € sat")["input_ids"] == whole("the cat € sat")["input_ids"]


def test_different_tokenizers_are_refused(tmp_path: Path) -> None:
    teacher, student = write_model(tmp_path / "a", own_head=True), write_model(tmp_path / "b", own_head=False)
    write_spiece(student, [text.replace("o", "q") for text in TEXTS])
    with pytest.raises(ValueError, match=r"different tokenizers: 160 and 160 tokens, first difference .*\nchoose"):
        check_models(named(teacher), ModelSettings(name=str(student)))


def cache(root: Path, name: str, model: Path) -> None:
    """A hub's model as its cache holds it."""
    repository = root / f"models--{name.replace('/', '--')}"
    shutil.copytree(model, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a network that fails the test."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection to {arguments[1]}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_that_is_not_in_the_cache_is_left_alone(no_network: Path, tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "a", own_head=True)
    check_models(named(teacher), ModelSettings(name="google-t5/t5-base"))
    check_models(TeacherSettings(name="bigscience/T0_3B"), ModelSettings(name="google-t5/t5-base", revision="abc"))


def test_a_hub_id_in_the_cache_is_checked_as_far_as_it_is_there(no_network: Path, tmp_path: Path) -> None:
    teacher, student = write_model(tmp_path / "a", own_head=True), write_model(tmp_path / "b", own_head=False)
    cache(no_network, "some/teacher", teacher)
    check_models(TeacherSettings(name="some/teacher"), ModelSettings(name=str(student)))
    write_spiece(student, [text.replace("o", "q") for text in TEXTS])
    with pytest.raises(ValueError, match="different tokenizers"):
        check_models(TeacherSettings(name="some/teacher"), ModelSettings(name=str(student)))
    snapshot = no_network / "models--some--teacher" / "snapshots" / "abc"
    (snapshot / "spiece.model").unlink()  # the download was broken off
    check_models(TeacherSettings(name="some/teacher"), ModelSettings(name=str(student)))
    (snapshot / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"^teacher.name: .* is damaged"):
        check_models(TeacherSettings(name="some/teacher", revision="abc"), ModelSettings(name=str(student)))


def test_what_runs_on_padded_rows_is_said_before_it_does(tmp_path: Path) -> None:
    bart, other = write_bart(tmp_path / "a"), write_bart(tmp_path / "b", seed=1)
    first, second = check_models(named(bart), ModelSettings(name=str(other)))
    assert first == f"teacher.name: {bart}: a bart is run by its own forward pass, on padded rows: " + (
        "right, but slower than most families"
    )
    assert second.startswith("student.name: ")
    llama = write_llama(tmp_path / "c")
    assert check_models(named(llama), ModelSettings(name=str(llama))) == []
