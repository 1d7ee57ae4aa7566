"""A `.gguf` file against the directory that it was made from, and what is refused before it is read."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch

from kd_core.models.files import check_config, check_model_files, read_config
from kd_core.models.formats import gguf as ours
from kd_core.models.formats.content import content_hash
from kd_core.models.formats.gguf import check_gguf, read_header
from kd_core.models.loading import ModelSettings, load_model, load_tokenizer, save_model
from tests.tasks.tiny_models import write_gguf, write_llama, write_t5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file, and the directory that it was made from: a Llama of two layers."""
    root = tmp_path_factory.mktemp("gguf")
    directory = write_llama(root / "llama")
    return write_gguf(root / "llama.gguf", directory), directory


@pytest.fixture
def path(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """The file, to be spoilt."""
    return Path(shutil.copy(made[0], tmp_path / "model.gguf"))


def test_model_and_tokenizer_are_those_that_the_file_was_made_from(made: tuple[Path, Path]) -> None:
    tokenizer, theirs = map(load_tokenizer, made)
    model, other = load_model(made[0], tokenizer=tokenizer), load_model(made[1], tokenizer=theirs)
    weights, expected = model.state_dict(), other.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    ids = torch.tensor([theirs("the cat sat")["input_ids"]])
    torch.testing.assert_close(model(ids).logits, other(ids).logits)
    assert tokenizer.get_vocab() == theirs.get_vocab()
    for text in ("the cat sat", "  12 € <|endoftext|>\n"):
        assert tokenizer(text)["input_ids"] == theirs(text)["input_ids"]
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|endoftext|>", "<|endoftext|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_of_it_is_a_directory_like_any_other(made: tuple[Path, Path], tmp_path: Path, dtype: str) -> None:
    tokenizer = load_tokenizer(made[0])
    model = load_model(made[0], dtype=dtype, tokenizer=tokenizer)  # type: ignore[arg-type]
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}
    save_model(model, tokenizer, tmp_path / "saved")
    assert check_model_files(tmp_path / "saved") == "causal"
    assert "quantization_config" not in read_config(tmp_path / "saved")
    again = load_model(tmp_path / "saved", dtype=dtype, tokenizer=tokenizer)  # type: ignore[arg-type]
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert load_tokenizer(tmp_path / "saved").chat_template == tokenizer.chat_template


def test_what_lies_beside_it_is_no_part_of_it(path: Path) -> None:
    alone = load_tokenizer(path).get_vocab()
    write_t5(path.parent, own_head=True)
    shutil.copy(path, path.with_name("other.gguf"))
    (path.parent / "tokenizer.json").write_text("{")
    assert load_tokenizer(path.with_name("other.gguf")).get_vocab() == alone
    assert load_model(path.with_name("other.gguf")).config.model_type == "llama"


def test_its_tokenizer_is_read_once_as_long_as_it_stays_the_same(path: Path) -> None:
    first = load_tokenizer(path)
    assert load_tokenizer(path) is first
    path.write_bytes(path.read_bytes())
    assert load_tokenizer(path) is not first


def test_nothing_is_printed(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(path, tokenizer=load_tokenizer(path))
    assert capfd.readouterr() == ("", "")


def test_it_is_told_by_its_bytes_and_not_by_its_name(path: Path, tmp_path: Path) -> None:
    named = ModelSettings(name=str(path))
    assert named.path == path
    assert named.commit is None
    assert named.identity() == {"content": content_hash(path), "dtype": "float32"}
    copy = shutil.copy(path, tmp_path / "copy.gguf")
    assert ModelSettings(name=str(copy)).identity() == named.identity()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert named.identity() != ModelSettings(name=str(copy)).identity()


def test_the_header_is_what_llama_cpps_own_library_reads(path: Path) -> None:
    header, reader = read_header(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata.keys() == fields.keys()
    for name, field in fields.items():
        value = field.contents()
        strings = isinstance(value, list) and isinstance(value[0], str)
        assert header.metadata[name] == (len(value) if strings else value), name
    assert header.end == max(int(each.data_offset + each.n_bytes) for each in reader.tensors) == path.stat().st_size
    assert check_config(path) == "causal"
    config = read_config(path)
    assert (config["num_hidden_layers"], config["max_position_embeddings"]) == (2, 128)


def header_of(path: Path, architecture: str = "llama", **values: int | str) -> None:
    """A file with metadata alone."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in values.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(name.replace("_", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: p.write_bytes(b""), r"is no GGUF file: .*\ncopy or download"),
    (lambda p: p.write_bytes(b"PK" + p.read_bytes()[2:]), r"is no GGUF file: .*\ncopy or download"),
    (lambda p: p.write_bytes(p.read_bytes()[:-1]), r"is damaged: \d+ bytes, but its header says \d+\ncopy or download"),
    (lambda p: p.write_bytes(p.read_bytes()[:500]), r"is damaged: its header cannot be read\ncopy or download"),
    (lambda p: p.write_bytes(p.read_bytes()[:6]), r"is damaged: its header cannot be read\ncopy or download"),
    (
        lambda p: p.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 2**62)),
        r"is damaged: its header cannot be read\n",
    ),
    (
        lambda p: p.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0)),
        r"version 1 of GGUF, .*\nconvert the model again",
    ),
    (lambda p: header_of(p, "grok"), r"of the architecture 'grok', .*\nit reads .*llama.*; or give a directory"),
    (lambda p: header_of(p, "t5encoder"), r"of the architecture 't5encoder', .*\nit reads .*; or give a directory"),
    (lambda p: header_of(p, general_type="adapter"), r"holds no model, .*\(general\.type adapter\)\ngive the \.gguf"),
    (lambda p: header_of(p, split_count=3), r"is one of 3 parts of a model\njoin them first: llama-gguf-split --merge"),
]


@pytest.mark.parametrize(("spoil", "said"), REFUSED)
def test_another_file_is_refused_in_two_lines(path: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(path)
    for read in (check_gguf, check_model_files, load_model):
        with pytest.raises(ValueError, match=said) as refused:
            read(path)
        first, _ = str(refused.value).split("\n")
        assert str(path) in first


def test_what_is_not_installed_is_named_with_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(
        ValueError, match=r"and gguf cannot be imported here\ninstall .*: pip install 'distill-llm\[gguf\]'"
    ):
        check_gguf(path)


def test_a_file_that_is_not_there_is_no_hub_id(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent.gguf"), "absent.gguf"):
        with pytest.raises(
            ValueError, match=rf"^model file '{name}' does not exist\ngive a directory with .* a \.gguf file"
        ):
            _ = ModelSettings(name=name).path
