"""Where a stage computes, and the models and texts that it computes with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from kd_core.batching import TokenRows
from kd_core.models.loading import DType, Model, Tokenizer, directory_hash, load_model, load_tokenizer
from kd_core.models.prompts import PLACEHOLDER, wrapped_rows
from kd_core.models.special_ids import vocabulary_size
from tasks.store.artifacts import Artifact, StoreError
from tasks.store.stage import RuntimeSettings


def device_of(runtime: RuntimeSettings) -> torch.device:
    """The device that the run names, or the best there is; sets the thread count where the run names one.

    Raises ValueError for a device that is not there.
    """
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if runtime.device != "auto":
        try:
            torch.empty(0, device=runtime.device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
            reason = str(error).strip().partition("\n")[0]
            message = f"runtime.device {runtime.device!r} cannot be used here: {reason}"
            raise ValueError(f"{message}\nleave it at auto, or name a device that this machine has") from None
        return torch.device(runtime.device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with its tokenizer."""

    model: Model
    tokenizer: Tokenizer

    @cached_property
    def num_tokens(self) -> int:
        """Rows up to the last token that the tokenizer can name; embeddings may be padded beyond."""
        return vocabulary_size(self.tokenizer)


def load_artifact(artifact: Artifact, device: torch.device) -> LoadedModel:
    """The model that a stage has made (`model/`), or referred to (`reference.json`)."""
    location, revision, dtype = model_location(artifact)
    tokenizer = load_tokenizer(location, revision)
    return LoadedModel(load_model(location, revision, dtype, device, tokenizer), tokenizer)


def head_of(artifact: Artifact, device: torch.device, num_tokens: int) -> torch.Tensor:
    """A causal model's head alone, in memory, down to the tokens that both tokenizers name. Shapes: -> (V, E)."""
    weight: torch.Tensor = load_artifact(artifact, torch.device("cpu")).model.lm_head.weight
    return weight.detach()[:num_tokens].clone().to(device)


def model_location(artifact: Artifact) -> tuple[str | Path, str | None, DType]:
    """Directory or hub id, revision and dtype of an artifact's model.

    Raises StoreError if a directory is not, or no longer, the one that the artifact refers to.
    """
    if (artifact.path / "model").is_dir():
        return artifact.path / "model", None, "float32"
    reference = json.loads((artifact.path / "reference.json").read_text(encoding="utf-8"))
    if reference["content"] is not None:
        _check_unchanged(artifact, Path(reference["name"]), reference["content"])
    return reference["name"], reference["revision"], reference["dtype"]


def _check_unchanged(artifact: Artifact, directory: Path, content: str) -> None:
    """A reference is to what a directory held: the key says so, whatever lies there now."""
    if directory.is_dir() and directory_hash(directory) == content:
        return
    state = "has changed" if directory.is_dir() else "is not there any more"
    raise StoreError(
        f"the {artifact.stage} was in {directory}, which {state}\n"
        f"put the same model back there, or delete {artifact.path} so that the next run notes where it is now"
    )


def read_split(corpus: Artifact, split: str, columns: Sequence[str], rows: int | None = None) -> dict[str, list[Any]]:
    """Columns of a prepared split, its first `rows` rows."""
    table = pq.read_table(corpus.path / f"{split}.parquet", columns=list(columns))
    return dict(table.slice(0, rows).to_pydict())


def prompt_rows(reader: LoadedModel, prompt: str, sources: Sequence[str], max_tokens: int) -> TokenRows:
    """What a teacher reads of each source: the prompt's own words are never cut, and come on top of `max_tokens`.

    Every row ends in the end of sequence, with one exception: a causal model goes straight on writing where the prompt
    has words after the source, which are the separator then.
    """
    open_end = not reader.model.config.is_encoder_decoder and not prompt.endswith(PLACEHOLDER)
    return wrapped_rows(reader.tokenizer, prompt, sources, max_tokens, ends=not open_end)
