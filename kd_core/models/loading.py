"""Models and tokenizers: loaded from safetensors, or small ones described by their shape.

No pickled weights and no remote code: `from_pretrained` is told so at the one place that calls it.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from kd_core.models.files import (
    NEEDED,
    ModelKind,
    check_config,
    check_no_part,
    check_tokenizer_files,
    check_weights,
    is_gguf,
)
from kd_core.models.formats.content import content_hash, stamps
from kd_core.models.formats.place import PACKAGE, place_of
from kd_core.models.revisions import commit_of
from kd_core.models.shapes import GPTNeoShape, T5Shape
from kd_core.models.special_ids import settle, settle_tokenizer
from kd_core.precision import Precision, check_precision, precision_field, require_precision

Model = Any  # transformers ships no types
Tokenizer = Any
PADDING_ROW = re.compile(r"\[PAD\d+\]")  # how llama.cpp names rows of the embedding that stand for no token
MIXED = "config.json and weights belong to different models, or a part is gone: copy or download both again"


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A language model: `name` (hub id, directory or .gguf, package:PACKAGE/FILE) or `shape` (small, made here)."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    name: str | None = None
    revision: str | None = None  # of a hub id: a commit; a branch is taken at the commit where it is when a run starts
    shape: T5Shape | GPTNeoShape | None = None
    dtype: Literal["float32", "bfloat16", "auto"] = precision_field()  # as loaded; a student trains in float32

    def __post_init__(self) -> None:
        if self.name is not None and not self.name.strip():
            raise ValueError("name must be a hub id or a directory, got an empty text")
        if (self.name is None) == (self.shape is None):
            raise ValueError("a model needs either name (hub id or directory) or shape (small), got both or neither")
        check_precision("dtype", self.dtype)

    @property
    def path(self) -> Path | None:
        """The local directory, or .gguf file, that `name` means, or None for a hub id.

        Raises ValueError for a path that is neither.
        """
        if self.name is None:
            return None
        path = place_of(self.name)
        check_no_part(path)
        if path.exists():
            return path
        if self.name.startswith((".", "/", "~", PACKAGE)) or self.name.count("/") > 1 or is_gguf(path):
            what = "model file" if is_gguf(path) else "model directory"
            raise ValueError(
                f"{what} {self.name!r} does not exist\n"
                "give a directory with config.json and *.safetensors, a .gguf file, or a hub id"
            )
        return None

    @property
    def commit(self) -> str | None:
        """The revision of a hub id to load: its commit as far as that can be known. None for what is not on the hub."""
        if self.name is None or self.path is not None:
            return None
        return commit_of(self.name, self.revision) or self.revision

    def identity(self) -> dict[str, object]:
        """What makes this model itself: family and shape, the content of its files, or hub id and commit."""
        require_precision("dtype", self.dtype)
        if self.shape is not None:  # shapes of two families may look alike
            return {"family": type(self.shape).__name__, "shape": vars(self.shape), "dtype": self.dtype}
        if self.path is not None:
            return {"content": content_hash(self.path), "dtype": self.dtype}
        return {"hub": self.name, "revision": self.commit, "dtype": self.dtype}


def load_tokenizer(location: str | Path, revision: str | None = None) -> Tokenizer:
    """A model's tokenizer; one that names no end of sequence is told its model's (`special_ids`).

    Raises ValueError in one line if there is none, or none that can be read.
    """
    tokenizer = read_tokenizer(location, revision)
    if tokenizer.eos_token_id is None:
        settle_tokenizer(tokenizer, *read_configs(location, revision), str(location))
    return tokenizer


def read_configs(location: str | Path, revision: str | None = None) -> tuple[Any, dict[str, Any]]:
    """A model's config as transformers reads it, and what generation_config.json holds, which need not be there.

    Raises ValueError in one line if there is no config that can be read.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        with quiet(), _place(location, revision) as place:
            config = AutoConfig.from_pretrained(**place)
    except Exception as error:  # whatever a nonsensical value leads to
        raise ValueError(_loading_problem("config", location, error)) from error
    try:
        with quiet():
            return config, GenerationConfig.from_pretrained(location, revision=revision).to_dict()
    except OSError:
        return config, {}


def read_tokenizer(location: str | Path, revision: str | None = None) -> Tokenizer:
    """A model's tokenizer as its files have it. Raises ValueError as `load_tokenizer` does."""
    if is_gguf(Path(location)):
        return _gguf_tokenizer(Path(location).resolve(), stamps(Path(location)))
    if Path(location).is_dir():
        check_tokenizer_files(Path(location))
    return _tokenizer(location, revision)


@cache
def _gguf_tokenizer(path: Path, _unchanged: tuple[tuple[int, ...], ...]) -> Tokenizer:
    """Read once a process, for it takes many seconds. Without the rows of padding that such files name as tokens."""
    tokenizer = _tokenizer(path, None)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    words = state["model"]["vocab"]
    if isinstance(words, dict) and any(PADDING_ROW.fullmatch(word) for word in words):
        state["model"]["vocab"] = {word: row for word, row in words.items() if not PADDING_ROW.fullmatch(word)}
        tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    return tokenizer


def _tokenizer(location: str | Path, revision: str | None) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        with quiet(), _place(location, revision) as place:
            tokenizer = AutoTokenizer.from_pretrained(**place)
    except Exception as error:  # the Rust library raises nothing narrower
        raise ValueError(_loading_problem("tokenizer", location, error)) from error
    # from an unreadable spiece.model, or none, transformers makes an empty tokenizer without a word
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:
        raise ValueError(_loading_problem("tokenizer", location, ValueError("it knows no words")))
    return tokenizer


def load_model(
    location: str | Path,
    revision: str | None = None,
    dtype: Precision | Literal["auto"] = "float32",
    device: str | torch.device = "cpu",
    tokenizer: Tokenizer | None = None,
) -> Model:
    """A language model in evaluation mode. A head of its own (T5 v1.1, T0) stays one.

    What its files say of special tokens is settled (`special_ids`), with its `tokenizer` where it is given.
    Raises ValueError in one line for a missing, corrupt, incomplete or different kind of model, or tokenizer.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import cached_file

    require_precision("dtype", dtype)
    local = Path(location) if Path(location).exists() else None
    try:
        with quiet(), _place(location, revision) as place:
            kind = check_config(local or Path(cached_file(location, "config.json", revision=revision)).parent)
            if local is not None and local.is_dir():
                check_weights(local)
            model, found = auto_model(kind).from_pretrained(
                **place, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
            )
            if "gguf_file" in place:
                model = _plain(model)
    except (OSError, ValueError, SafetensorError, RuntimeError, StrictDataclassError) as error:
        raise ValueError(_loading_problem("model", location, error)) from error
    if found["missing_keys"]:  # transformers draws them at random and goes on
        problem = f"{len(found['missing_keys'])} weights are missing, the first {min(found['missing_keys'])}"
        raise ValueError(f"cannot load the model {str(location)!r}: {problem}\n{MIXED}")
    settle(model, tokenizer, str(location))
    return model.eval().to(device)


@contextmanager
def _place(location: str | Path, revision: str | None) -> Iterator[dict[str, Any]]:
    """What tells `from_pretrained` which model to load. A .gguf is alone there: no file beside it is a part of it."""
    place: dict[str, Any] = {"pretrained_model_name_or_path": location, "revision": revision}
    with TemporaryDirectory() as alone:
        if is_gguf(Path(location)):
            from transformers import modeling_gguf_pytorch_utils as reader

            reader.tqdm = partial(reader.tqdm, disable=True)  # its bar heeds no setting
            (Path(alone) / "model.gguf").symlink_to(Path(location).resolve())
            place = {"pretrained_model_name_or_path": alone, "gguf_file": "model.gguf"}
        yield place | {"trust_remote_code": False}


def _plain(model: Model) -> Model:
    """The same weights in a model that does not remember having been quantised, and can be saved."""
    config, weights = model.config, model.state_dict()
    del config.quantization_config
    return type(model).from_pretrained(None, config=config, state_dict=weights, dtype=model.dtype)


def auto_model(kind: ModelKind) -> Any:
    """The class of transformers that loads models of a kind."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars nor advice from transformers: what matters of it is checked here. Downloads keep theirs."""
    from transformers.utils import logging

    verbosity, hook = logging.get_verbosity(), logging.set_tqdm_hook(_no_bar)
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.set_tqdm_hook(hook)


def _no_bar(make: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return make(*arguments, **(named | {"disable": True}))


def _loading_problem(kind: str, location: str | Path, error: Exception) -> str:
    """What went wrong in one line, what to do in another. Our own checks say both by themselves."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    if str(location) in lines[0] and len(lines) == 2:
        return str(error)
    if "mismatched_sizes" in lines[0]:  # transformers prints a report instead
        lines, hint = ["its weights have other sizes than config.json says"], MIXED
    elif is_gguf(Path(location)):
        hint = "give a directory with the model that it was made from"
    elif Path(location).is_dir():
        hint = NEEDED
    else:
        hint = "no network? download it elsewhere (safetensors) and give the directory as name"
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"cannot load the {kind} {str(location)!r}: {reason}\n{hint}"


def check_same_tokenizer(teacher: Tokenizer, student: Tokenizer) -> None:
    """LLMR scores the student's own tokens with the teacher: both must mean the same by each id.

    Raises ValueError naming the first token that differs. Embeddings padded to different sizes over one tokenizer
    are fine.
    """
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    if ours == theirs:
        if teacher.eos_token_id != student.eos_token_id:
            raise ValueError(
                f"teacher and student end their texts differently: in {teacher.eos_token!r} and {student.eos_token!r}\n"
                "give both the same eos_token in tokenizer_config.json"
            )
        return
    different = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: item[1])
    token, number = different[0]
    raise ValueError(
        f"teacher and student have different tokenizers: {len(ours)} and {len(theirs)} tokens, "
        f"first difference {token!r} (id {number})\n"
        "choose a student of the teacher's family"
    )


def save_model(
    model: Model, tokenizer: Tokenizer, directory: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """A directory that transformers' `from_pretrained` loads, model and tokenizer; `weights`: of a sharded model."""
    with quiet():
        model.save_pretrained(directory, state_dict=weights)
    save_tokenizer(tokenizer, directory)


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Its files, beside others or alone.

    tokenizer.json would keep the length that a text was last cut at, and other libraries would cut at it too.
    """
    if hasattr(tokenizer, "backend_tokenizer"):
        tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(directory)
