"""What a model directory must hold, told from its files alone, without loading a weight or importing anything heavy.
A `.gguf` file stands for a directory.

A model is often loaded late, after hours of another one's work: what can be seen to be wrong is said before. Every
problem is a ValueError of two lines: what is wrong, and what to do.
"""

import json
from pathlib import Path
from typing import Any, Literal

from kd_core.models.formats.gguf import check_gguf, read_header

ModelKind = Literal["seq2seq", "causal"]
OWN: dict[str, ModelKind] = {"t5": "seq2seq", "mt5": "seq2seq", "gpt_neo": "causal"}  # run by code of ours
SEQ2SEQ, CAUSAL = ("ForConditionalGeneration", "MTModel"), ("ForCausalLM", "LMHeadModel")  # how their classes end
TOKENIZERS = (("tokenizer.json",), ("spiece.model",), ("vocab.json", "merges.txt"))  # any of them will do
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # weights, or what a trainer goes on with: optimizer.pt
UNUSED = ("F8_", "F6_", "F4")  # how the names of floats begin that nothing here computes in
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
NEEDED = (
    f"a model directory needs config.json, {WEIGHTS} (or shards with {INDEX}) and a tokenizer: tokenizer.json, "
    "spiece.model, or vocab.json with merges.txt"
)


def is_gguf(path: Path) -> bool:
    """Whether the path is, or would be, a model in llama.cpp's format."""
    return path.suffix == ".gguf" and not path.is_dir()


def check_no_part(path: Path) -> None:
    """Raise ValueError for a file that is a part of a model, or none; a .gguf is a whole one."""
    if is_gguf(path) or not path.is_file():
        return
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} holds weights and nothing else of a model\ngive its directory: {path.parent}")
    pickle = " a pickle, which can run any code and is never loaded here" if path.suffix in PICKLES else " no model"
    raise ValueError(f"{path} is{pickle}\ngive a directory with config.json, *.safetensors and a tokenizer")


def check_model_files(path: Path) -> ModelKind:
    """A language model with whole weights in safetensors and a tokenizer, or in a .gguf; returns which kind.

    Raises ValueError if it is not that.
    """
    kind = check_config(path)
    if not is_gguf(path):
        check_weights(path)
        check_tokenizer_files(path)
    return kind


def check_config(directory: Path) -> ModelKind:
    """config.json is there, asks for no code of its own, and names a model that writes text; returns its kind.

    Whether the model can be run here is seen when it is loaded (`policy.backend_of`).
    """
    if is_gguf(directory):
        check_gguf(directory)
        return "seq2seq" if read_config(directory)["is_encoder_decoder"] else "causal"
    path, config = directory / "config.json", read_config(directory)
    if config.get("auto_map"):
        raise ValueError(
            f"{path} asks for code of its own (auto_map), and code that comes with weights is never run here\n"
            "use a model that transformers has itself, or take auto_map out if the weights are those of one"
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "an unnamed method")
        raise ValueError(
            f"{path} says that the weights are quantised ({method}), and no such model is run here\n"
            "take the model that they were made from, in bfloat16 or float32, or a .gguf file of it"
        )
    family, classes = config.get("model_type"), config.get("architectures") or []
    if family in OWN and (not classes or any(str(name).endswith(SEQ2SEQ + CAUSAL) for name in classes)):
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
    """What config.json says, or the header of a .gguf. Raises ValueError if it is not there, or cannot be read."""
    if is_gguf(directory):
        return read_header(directory).config()
    if (directory / ADAPTER).is_file():  # beside a whole model too: transformers would take its base, from the hub
        base = _read_json(directory / ADAPTER).get("base_model_name_or_path") or "its base"
        raise ValueError(
            f"{directory} holds an adapter of {base} ({ADAPTER}), not a model of its own\n"
            f"merge it (peft: merge_and_unload) and save that without {ADAPTER}, or name {base}"
        )
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
        unused = min((entry["dtype"] for entry in entries.values() if entry["dtype"].startswith(UNUSED)), default=None)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise ValueError(f"{path} is damaged: its header cannot be read\ncopy or download it again") from None
    if unused is not None:
        raise ValueError(
            f"{path} holds weights in {unused}, which nothing here computes in\n"
            "take the model that they were made from, in bfloat16 or float32"
        )
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
    """Whether the files of a tokenizer are there; a .gguf has one in itself."""
    return is_gguf(directory) or bool(tokenizer_files(directory))


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
