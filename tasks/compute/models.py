"""The models that stages have made or referred to, loaded."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from kd_core.losses.head import Head
from kd_core.models.files import read_config
from kd_core.models.formats.content import content_hash
from kd_core.models.loading import DType, Model, Tokenizer, check_same_tokenizer, load_model, load_tokenizer
from kd_core.models.policy import head_of
from kd_core.models.special_ids import vocabulary_size
from tasks.store.artifacts import Artifact, StoreError


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with its tokenizer."""

    model: Model
    tokenizer: Tokenizer

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether sources are read by an encoder; else they are the beginning of what is written."""
        return bool(self.model.config.is_encoder_decoder)

    @cached_property
    def num_tokens(self) -> int:
        """Size of the vocabulary that the tokenizer can name; an embedding may be padded beyond it."""
        return vocabulary_size(self.tokenizer)


def load_artifact(artifact: Artifact, device: torch.device) -> LoadedModel:
    """The model that a stage has made (`model/`), or referred to (`reference.json`)."""
    location, revision, dtype = model_location(artifact)
    tokenizer = load_tokenizer(location, revision)
    return LoadedModel(load_model(location, revision, dtype, device, tokenizer), tokenizer)


def load_pair(teacher: Artifact, student: Artifact, device: torch.device) -> tuple[LoadedModel, LoadedModel]:
    """A teacher and its student. Raises ValueError if they read different tokens."""
    pair = load_artifact(teacher, device), load_artifact(student, device)
    check_same_tokenizer(*(each.tokenizer for each in pair))
    return pair


def lone_head(artifact: Artifact, device: torch.device, num_tokens: int) -> Head:
    """A model's head without the model, in memory, down to the tokens that both tokenizers name."""
    return head_of(load_artifact(artifact, torch.device("cpu")).model, num_tokens).copied_to(device)


def model_location(artifact: Artifact) -> tuple[str | Path, str | None, DType]:
    """Directory or hub id, revision and dtype of an artifact's model.

    Raises StoreError if a directory is not, or no longer, the one that the artifact refers to.
    """
    made = artifact.path / "model"
    if made.is_dir():
        return made, None, "bfloat16" if read_config(made).get("dtype") == "bfloat16" else "float32"
    reference = json.loads((artifact.path / "reference.json").read_text(encoding="utf-8"))
    if reference["content"] is not None:
        _check_unchanged(artifact, Path(reference["name"]), reference["content"])
    return reference["name"], reference["revision"], reference["dtype"]


def _check_unchanged(artifact: Artifact, directory: Path, content: str) -> None:
    """Raise StoreError unless the directory has the content that the artifact's key stands for."""
    if directory.is_dir() and content_hash(directory) == content:
        return
    state = "has changed" if directory.is_dir() else "is not there any more"
    raise StoreError(
        f"the {artifact.stage} was in {directory}, which {state}\n"
        f"put the same model back there, or delete {artifact.path} so that the next run notes where it is now"
    )
