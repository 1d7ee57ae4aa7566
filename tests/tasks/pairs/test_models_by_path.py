"""Real models by path: T5 (tied head) and T5 v1.1 or T0 (a head of its own), in safetensors with spiece.model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from kd_core.models.loading import load_model, load_tokenizer, save_model
from kd_core.models.tokenizer import train_tokenizer
from tasks.compute.models import LoadedModel, load_artifact
from tasks.pairs.pre_distill import untrained_student
from tasks.pairs.prepare import prepare
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings, teacher
from tasks.store.artifacts import Artifact, Store
from tasks.store.stage import open_run
from tests.tasks.tiny_models import NUM_SENTINELS, TEXTS, write_model, write_spiece, write_t5
from tests.tasks.tiny_runs import RUNTIME, run_llmr, write_pairs


@pytest.mark.parametrize("own_head", [False, True])
def test_weights_come_back_equal_and_a_head_of_its_own_stays_one(tmp_path: Path, own_head: bool) -> None:
    made = write_t5(tmp_path, own_head=own_head)
    loaded = load_model(tmp_path)
    ours, theirs = loaded.state_dict(), made.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.lm_head.weight is loaded.shared.weight) is not own_head
    assert loaded.config.scale_decoder_outputs is not own_head
    assert not loaded.training


@pytest.mark.parametrize("own_head", [False, True])
def test_a_trained_model_saved_and_loaded_again_is_the_same(tmp_path: Path, own_head: bool) -> None:
    write_model(tmp_path / "start", own_head=own_head)
    model, tokenizer = load_model(tmp_path / "start"), load_tokenizer(tmp_path / "start")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_model(model, tokenizer, tmp_path / "end")
    again = load_model(tmp_path / "end")
    ids = torch.tensor([[5, 6, 7, 1]])
    with torch.no_grad():
        outputs = [each(input_ids=ids, decoder_input_ids=ids).logits for each in (model, again)]
    assert torch.equal(*outputs)
    assert load_tokenizer(tmp_path / "end").get_vocab() == tokenizer.get_vocab()


def test_a_saved_tokenizer_cuts_no_text_at_the_length_that_another_was_cut_at(tmp_path: Path) -> None:
    write_model(tmp_path / "start", own_head=True)
    tokenizer, text = load_tokenizer(tmp_path / "start"), " ".join(TEXTS[:3])
    whole = tokenizer(text)["input_ids"]
    tokenizer(text, truncation=True, max_length=3)
    save_model(load_model(tmp_path / "start"), tokenizer, tmp_path / "end")
    other_library = Tokenizer.from_file(str(tmp_path / "end" / "tokenizer.json"))
    assert other_library.encode(text).ids == whole


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "start", own_head=True)
    capfd.readouterr()
    save_model(load_model(tmp_path / "start"), load_tokenizer(tmp_path / "start"), tmp_path / "end")
    train_tokenizer(TEXTS, 60)
    assert capfd.readouterr() == ("", "")


def test_bfloat16_is_of_the_weights_as_loaded(tmp_path: Path) -> None:
    made = write_t5(tmp_path, own_head=True)
    loaded = load_model(tmp_path, dtype="bfloat16")
    assert loaded.shared.weight.dtype == loaded.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.lm_head.weight, made.lm_head.weight.bfloat16())


def test_a_sentencepiece_model_gives_its_own_ids(tmp_path: Path) -> None:
    length = write_spiece(tmp_path)
    write_t5(tmp_path, own_head=False)
    tokenizer = load_tokenizer(tmp_path)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    for text in (*TEXTS[:50], "an unknown Ω", "  two  spaces "):
        assert tokenizer(text)["input_ids"] == [*oracle.encode(text), 1], text
    assert len(tokenizer) == length == oracle.get_piece_size() + NUM_SENTINELS
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.decode(tokenizer("the cat sat")["input_ids"], skip_special_tokens=True) == "the cat sat"


def test_the_form_that_the_project_trains_loads_the_same_way(tmp_path: Path) -> None:
    made = train_tokenizer(TEXTS, 60)
    made.save_pretrained(tmp_path)
    write_t5(tmp_path, own_head=False)
    assert not (tmp_path / "spiece.model").exists()
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == made.get_vocab()
    assert loaded("the cat sat")["input_ids"] == made("the cat sat")["input_ids"]


def test_the_same_texts_give_the_same_tokenizer(tmp_path: Path) -> None:
    # left to itself the trainer orders equal pieces by chance: other ids, and other weights after the same training
    for number in range(5):
        train_tokenizer(TEXTS, 60).save_pretrained(tmp_path / str(number))
    assert len({(tmp_path / str(number) / "tokenizer.json").read_bytes() for number in range(5)}) == 1


def test_padding_rows_of_the_embedding_are_no_tokens(tmp_path: Path) -> None:
    write_model(tmp_path, own_head=False)
    loaded = LoadedModel(load_model(tmp_path), load_tokenizer(tmp_path))
    assert (loaded.num_tokens, loaded.model.config.vocab_size) == (160, 192)


def change_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def pickled(directory: Path) -> None:
    torch.save(load_model(directory).state_dict(), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def sharded(directory: Path) -> None:
    load_model(directory).save_pretrained(directory, max_shard_size="10KB")
    (directory / "model.safetensors").unlink()
    assert len(list(directory.glob("model-*.safetensors"))) > 1


def without_a_shard(directory: Path) -> None:
    sharded(directory)
    min(directory.glob("model-*.safetensors")).unlink()


def adapter(directory: Path, whole: bool = False) -> None:
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 8}))
    if not whole:
        (directory / "config.json").unlink()


def in_float8(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    name = "lm_head.weight"
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, directory / "model.safetensors")


REFUSED: list[tuple[Callable[[Path], object], str, str]] = [
    (pickled, "has no model.safetensors", "pickled"),
    (
        lambda d: change_config(d, model_type="bert", architectures=["BertModel"]),
        "BertModel, which writes no",
        "take a",
    ),
    (lambda d: change_config(d, model_type="gpt2", architectures=None), "a model of type 'gpt2', which", "take a"),
    (lambda d: change_config(d, auto_map={"AutoModelForSeq2SeqLM": "m.M"}), "code of its own", "never run here"),
    (lambda d: truncate(d / "model.safetensors"), r"model.safetensors is damaged: \d+ bytes", "again"),
    (lambda d: (d / "model.safetensors").write_bytes(b"x" * 99), "header cannot be read", "again"),
    (lambda d: (d / "model.safetensors").write_bytes(b""), "header cannot be read", "again"),
    (without_a_shard, "has no model-00001-of-", "again"),
    (adapter, r"holds an adapter of org/base \(adapter_config.json\)", "name org/base"),
    (lambda d: adapter(d, whole=True), r"holds an adapter of org/base", "save that without adapter_config.json"),
    (lambda d: change_config(d, architectures=["T5EncoderModel"]), "T5EncoderModel, which writes no", "take a"),
    (lambda d: change_config(d, architectures=["T5Model"]), "T5Model, which writes no", "take a"),
    (in_float8, "holds weights in F8_E4M3, which nothing here computes in", "in bfloat16 or float32"),
    (
        lambda d: change_config(d, quantization_config={"quant_method": "awq", "bits": 4}),
        r"the weights are quantised \(awq\)",
        "in bfloat16 or float32, or a .gguf",
    ),
    (lambda d: (d / "config.json").unlink(), "has no config.json", "needs config.json"),
    (lambda d: (d / "config.json").write_text("{"), "not valid JSON", "again"),
    (lambda d: change_config(d, num_layers=2), "weights are missing, the first encoder.block.1", "different models"),
    (lambda d: change_config(d, d_ff=32), "other sizes than config.json says", "different models"),
    (lambda d: change_config(d, d_model="wide"), "'d_model'", "needs config.json"),
]


@pytest.mark.parametrize(("spoil", "what", "advice"), REFUSED)
def test_a_broken_or_foreign_model_is_refused_in_two_lines(
    tmp_path: Path, spoil: Callable[[Path], object], what: str, advice: str
) -> None:
    write_t5(tmp_path, own_head=True)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=what) as refused:
        load_model(tmp_path)
    problem, hint = str(refused.value).split("\n")
    assert str(tmp_path) in problem
    assert advice in hint or advice in problem


def test_weights_in_shards_are_those_in_one_file(tmp_path: Path) -> None:
    expected = write_t5(tmp_path, own_head=True).state_dict()
    sharded(tmp_path)
    loaded = load_model(tmp_path).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("pytorch_model.bin", "is a pickle, which can run any code and is never loaded here"),
        ("checkpoint-500/optimizer.pt", "is a pickle, which can run any code and is never loaded here"),
        ("model.onnx", "is no model"),
        ("model.safetensors", "holds weights and nothing else of a model"),
    ],
)
def test_a_file_that_is_a_part_of_a_model_is_refused_in_two_lines(tmp_path: Path, name: str, what: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=rf"^{path} {what}\ngive ") as refused:
        _ = TeacherSettings(name=str(path)).path
    if path.suffix == ".safetensors":
        assert str(refused.value).endswith(f"give its directory: {tmp_path}")


def test_a_missing_path_is_refused_in_two_lines(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist\ngive a directory"):
        _ = StudentSettings(name=str(tmp_path / "nowhere")).path
    with pytest.raises(ValueError, match=r"nowhere.*\n.*give the directory"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [None, b"", b"no SentencePiece model"])
def test_a_missing_or_unreadable_tokenizer_is_refused_and_not_made_up(tmp_path: Path, content: bytes | None) -> None:
    write_t5(tmp_path, own_head=False)
    if content is not None:
        (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer") as refused:
        load_tokenizer(tmp_path)
    assert len(str(refused.value).split("\n")) == 2


def refer(store: Store, directory: Path) -> Artifact:
    """A teacher by path."""
    with open_run(store, name="test", runtime=RUNTIME):
        corpus = prepare(dataset=write_pairs(store.root / "pairs.csv"), seed=0, limit=None)
        return teacher(corpus=corpus, settings=TeacherSettings(name=str(directory)), seed=0)


def test_a_teacher_and_a_student_by_path_go_through_every_stage(tmp_path: Path) -> None:
    by_path, student = write_model(tmp_path / "t0", own_head=True), write_model(tmp_path / "t5", own_head=False, seed=1)
    run, made = run_llmr(
        Store(tmp_path / "store"),
        TeacherSettings(name=str(by_path), prompt="reply to [ {source} ]:", dtype="bfloat16"),
        StudentSettings(name=str(student)),
    )
    assert [each.outcome for each in run.stages] == ["built"] * 12
    outputs = pq.read_table(made["score"].path / "outputs-00000.parquet")["token_ids"].to_pylist()
    assert max(max(ids) for ids in outputs) < 160  # never a padding row
    start, end = (load_artifact(made[name], torch.device("cpu")).model for name in ("seqkd", "llmr"))
    assert end.lm_head.weight is end.shared.weight
    assert not torch.equal(start.shared.weight, end.shared.weight)
    systems = set(pq.read_table(made["evaluate"].path / "metrics.parquet")["system"].to_pylist())
    assert systems == {"teacher", "pre_distilled", "llmr"}


def test_a_student_trains_in_float32_whatever_it_was_loaded_as(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "t5", own_head=True)
    teacher_model = refer(Store(tmp_path / "store"), directory)
    named = StudentSettings(name=str(directory), dtype="bfloat16")
    model = untrained_student(named, teacher_model, 0, torch.device("cpu")).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    rounded = load_model(directory).lm_head.weight.bfloat16().float()
    assert torch.equal(model.lm_head.weight, rounded)


@pytest.mark.parametrize("gone", [True, False])
def test_a_teacher_that_moved_or_changed_since_is_not_taken_for_the_old_one(tmp_path: Path, gone: bool) -> None:
    store, first = Store(tmp_path / "store"), write_model(tmp_path / "first", own_head=False)
    teacher_model = refer(store, first)
    copy = first.rename(tmp_path / "second")
    if not gone:
        write_model(first, own_head=False, seed=1)
    again = refer(store, copy)
    assert again == teacher_model  # the same content: the same model
    with pytest.raises(ValueError, match=r"first.*(not there any more|changed)") as refused:
        load_artifact(again, torch.device("cpu"))
    assert str(teacher_model.path) in str(refused.value).split("\n")[1]
