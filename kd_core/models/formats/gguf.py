"""What the header of a `.gguf` file (llama.cpp's format) says of a model, read without its weights.

transformers takes seconds to tens of seconds to read one; what a run wants to know of it before it starts is read here
in a moment. Source: the format's specification, ggml/docs/gguf.md, versions 2 and 3 (little-endian).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
LONGEST = 2**28  # bytes: of no string or list in a header
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by value type
STRING, ARRAY = 8, 9
NEEDED = ("gguf", "accelerate")  # what transformers reads such a file with
SEQ2SEQ = ("t5", "umt5")
AS_TRANSFORMERS = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Header:
    """Metadata by name, arrays of strings by their length; and where the last tensor ends, in bytes."""

    metadata: Mapping[str, Any]
    end: int

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the family."""
        return str(self.metadata.get("general.architecture"))

    def config(self) -> dict[str, Any]:
        """What a config.json of the model would say of its family, size and kind."""
        prefix, metadata = self.architecture, self.metadata
        found = {
            "model_type": prefix,
            "is_encoder_decoder": prefix in SEQ2SEQ,
            "max_position_embeddings": metadata.get(f"{prefix}.context_length"),
            "num_hidden_layers": metadata.get(f"{prefix}.block_count"),
        }
        if prefix in SEQ2SEQ:
            found["num_decoder_layers"] = metadata.get(f"{prefix}.decoder_block_count", found["num_hidden_layers"])
        return found


def check_gguf(path: Path) -> None:
    """The file is whole, and a language model that transformers reads. Raises ValueError, in two lines, if not."""
    header = read_header(path)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{path} is read with {' and '.join(NEEDED)}, and {' and '.join(missing)} cannot be imported here\n"
            "install the extra: pip install 'distill-llm[gguf]'"
        )
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise ValueError(
            f"{path} holds no model, but a part of one, or an addition to one (general.type {kind})\n"
            "give the .gguf file of the model itself, adapters merged"
        )
    if header.metadata.get("split.count", 0) > 1:
        raise ValueError(
            f"{path} is one of {header.metadata['split.count']} parts of a model\n"
            "join them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )
    known = _known()
    if AS_TRANSFORMERS.get(header.architecture, header.architecture) not in known:
        raise ValueError(
            f"{path} is of the architecture {header.architecture!r}, which transformers does not read from .gguf\n"
            f"it reads {', '.join(sorted(known))}; or give a directory with the model in safetensors"
        )
    size = path.stat().st_size
    if size < header.end:
        raise ValueError(f"{path} is damaged: {size} bytes, but its header says {header.end}\n{AGAIN}")


def read_header(path: Path) -> Header:
    """Metadata and extent of a .gguf file. Raises ValueError, in two lines, for anything else."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError(f"{path} is no GGUF file: it does not begin with GGUF\n{AGAIN}")
        try:
            (version,) = struct.unpack("<I", file.read(4))
            if version not in VERSIONS:
                raise ValueError(
                    f"{path} is of version {version} of GGUF, and 2 and 3 are read\n"
                    "convert the model again with a newer llama.cpp"
                )
            return _header(file)
        except (EOFError, KeyError, UnicodeDecodeError, struct.error):
            raise ValueError(f"{path} is damaged: its header cannot be read\n{AGAIN}") from None


def _header(file: Any) -> Header:
    num_tensors, num_values = _numbers(file, "QQ")
    metadata = {}
    for _ in range(num_values):
        name = _string(file)
        metadata[name] = _value(file, _numbers(file, "I")[0])
    tensors = []
    for _ in range(num_tensors):
        _string(file)
        sizes = _numbers(file, f"{_numbers(file, 'I')[0]}Q")
        tensors.append((prod(sizes), *_numbers(file, "IQ")))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    start = -(-file.tell() // alignment) * alignment
    return Header(metadata, start + max((offset + _size(kind, count) for count, kind, offset in tensors), default=0))


def _size(kind: int, count: int) -> int:
    """Bytes of a tensor of so many numbers; 0 for a type that is not known here."""
    if find_spec("gguf") is None:
        return 0
    from gguf import GGML_QUANT_SIZES

    numbers, size = {int(each): sizes for each, sizes in GGML_QUANT_SIZES.items()}.get(kind, (1, 0))
    return count // numbers * size


def _value(file: Any, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _numbers(file, NUMBERS[kind])[0]
    kind, length = _numbers(file, "IQ")
    if kind not in (STRING, ARRAY):
        return list(_numbers(file, f"{length}{NUMBERS[kind]}"))
    for _ in range(length):
        _value(file, kind)
    return length


def _string(file: Any) -> str:
    (length,) = _numbers(file, "Q")
    return str(_read(file, length), "utf-8")


def _numbers(file: Any, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", _read(file, struct.calcsize(f"<{form}")))


def _read(file: Any, length: int) -> bytes:
    found: bytes = file.read(min(length, LONGEST))
    if len(found) < length:
        raise EOFError
    return found


def _known() -> set[str]:
    """The architectures that the transformers installed here reads."""
    from transformers.integrations import gguf
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    newer = set(getattr(gguf, "GGUF_CONFIG_ARCHS", ()))
    return (newer | set(GGUF_SUPPORTED_ARCHITECTURES)) - {"general", "tokenizer"}
