"""What a model directory must hold, told from its files alone, without loading a weight or importing anything heavy.

A model is often loaded late, after hours of another one's work: what can be seen to be wrong is said before. Every
problem is a ValueError of two lines: what is wrong, and what to do.
"""

import json
from pathlib import Path
from typing import Any, Literal

ModelKind = Literal["seq2seq", "causal"]
OWN: dict[str, ModelKind] = {"t5": "seq2seq", "mt5": "seq2seq", "gpt_neo": "causal"}  # run by code of ours
SEQ2SEQ, CAUSAL = ("ForConditionalGeneration", "MTModel"), ("ForCausalLM", "LMHeadModel")  # how their classes end
TOKENIZERS = (("tokenizer.json",), ("spiece.model",), ("vocab.json", "merges.txt"))  # any of them will do
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
NEEDED = (
    f"a model directory needs config.json, {WEIGHTS} (or shards with {INDEX}) and a tokenizer: tokenizer.json, "
    "spiece.model, or vocab.json with merges.txt"
)


def check_model_files(directory: Path) -> ModelKind:
    """A language model with whole weights in safetensors and a tokenizer; returns which kind.

    Raises ValueError if it is not that.
    """
    kind = check_config(directory)
    check_weights(directory)
    check_tokenizer_files(directory)
    return kind


def check_config(directory: Path) -> ModelKind:
    """config.json is there, asks for no code of its own, and names a model that writes text; returns its kind.

    Whether the model can be run here is seen when it is loaded (`policy.backend_of`).
    """
    path, config = directory / "config.json", read_config(directory)
    if config.get("auto_map"):
        raise ValueError(
            f"{path} asks for code of its own (auto_map), and code that comes with weights is never run here\n"
            "use a model that transformers has itself, or take auto_map out if the weights are those of one"
        )
    family, classes = config.get("model_type"), config.get("architectures") or []
    if family in OWN:
        return OWN[family]
    if config.get("is_encoder_decoder") and any(str(name).endswith(SEQ2SEQ) for name in classes):
        return "seq2seq"
    if any(str(name).endswith(CAUSAL) for name in classes):
        return "causal"
    raise ValueError(
        f"{path} describes {' and '.join(map(str, classes)) or f'a model of type {family!r}'}, which writes no text\n"
        "take a model with a head over its vocabulary: …ForCausalLM, …LMHeadModel, …ForConditionalGeneration"
    )


def read_config(directory: Path) -> dict[str, Any]:
    """What config.json says. Raises ValueError if it is not there, or not JSON."""
    if not (directory / "config.json").is_file():
        raise ValueError(f"{directory} has no config.json\n{NEEDED}")
    return _read_json(directory / "config.json")


def check_weights(directory: Path) -> None:
    """Every safetensors file that the model consists of is there and whole; pickled weights are none."""
    for path in weight_files(directory):
        check_safetensors(path)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that the model consists of. Raises ValueError if one is not there."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not (directory / INDEX).is_file():
        raise ValueError(f"{directory} has no {WEIGHTS}\n{_pickled(directory) or NEEDED}")
    shards = _read_json(directory / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{directory / INDEX} names no weights\ncopy or download it again")
    paths = [directory / str(name) for name in sorted(set(shards.values()))]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{directory} has no {path.name}, which {INDEX} names\ncopy or download it again")
    return paths


def check_safetensors(path: Path) -> dict[str, list[int]]:
    """The header can be read and the file is as long as it says. Returns the tensors' shapes; reads no tensor."""
    check_not_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= size - 8 else b""
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        expected = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        shapes = {name: list(entry["shape"]) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise ValueError(f"{path} is damaged: its header cannot be read\ncopy or download it again") from None
    if size != expected:
        raise ValueError(f"{path} is damaged: {size} bytes, but its header says {expected}\ncopy or download it again")
    return shapes


def tensor_shapes(directory: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor of the model."""
    return {name: shape for path in weight_files(directory) for name, shape in check_safetensors(path).items()}


def check_tokenizer_files(directory: Path) -> None:
    """There is a tokenizer, itself and no pointer to it.

    Without its files an empty one would be made up for the model's type, in silence.
    """
    if not has_tokenizer(directory):
        raise ValueError(
            f"{directory} has no tokenizer: neither {' nor '.join(' with '.join(files) for files in TOKENIZERS)}\n"
            "copy it from where the model is from"
        )

    for path in tokenizer_files(directory):
        check_not_pointer(path)


def has_tokenizer(directory: Path) -> bool:
    """Whether the files of a tokenizer are there."""
    return bool(tokenizer_files(directory))


def tokenizer_files(directory: Path) -> list[Path]:
    """The files that the tokenizer is read from: the first of the forms that is there."""
    forms = ([directory / name for name in files] for files in TOKENIZERS)
    return next((paths for paths in forms if all(path.is_file() for path in paths)), [])


def check_not_pointer(path: Path) -> None:
    """The file is itself, and not the few lines that git leaves of it where git-lfs is not installed."""
    with path.open("rb") as file:
        pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    if pointer:
        raise ValueError(
            f"{path} is a Git LFS pointer, not the file that it stands for\n"
            "install git-lfs and run `git lfs pull` in the clone, or download the file"
        )


def _pickled(directory: Path) -> str:
    """What to do about pickled weights, if there are any."""
    if not any(directory.glob("*.bin")):
        return ""
    return (
        "its weights are pickled (*.bin), and a pickle can run any code: it is never loaded here; convert it once "
        "where you trust it: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW), or AutoModelForSeq2SeqLM"
    )


def _read_json(path: Path) -> dict[str, Any]:
    check_not_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 alike
        raise ValueError(f"{path} is not valid JSON: {error}\ncopy or download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object\ncopy or download it again")
    return content
