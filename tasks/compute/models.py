"""The models that stages have made or referred to, loaded.

A stage leaves a model in one of three forms: all of it (`model/`), a reference to one that is somewhere already
(`reference.json`), or an adapter with its tokenizer and a note of its base (`adapter/`): a reference again, or another
artifact.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kd_core.losses.head import Head
from kd_core.models.backends.lora import base_of, load_adapter, merge, save_adapter
from kd_core.models.backends.sharded import shard
from kd_core.models.backends.spread import spread
from kd_core.models.files import read_config
from kd_core.models.formats.content import content_hash
from kd_core.models.loading import (
    Model,
    Tokenizer,
    check_same_tokenizer,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
)
from kd_core.models.policy import OWN, PACKED, backend_of, candidates, head_of
from kd_core.models.special_ids import also_ends, vocabulary_size
from kd_core.precision import Precision
from kd_core.train.ranks import Ranks
from tasks.compute.served import Served, load_served
from tasks.engine.settings import Sharded
from tasks.store.artifacts import Artifact, Store, StoreError

Devices = torch.device | Sequence[torch.device]
Location = tuple[str | Path, str | None, Precision]  # directory or hub id, revision, dtype
ADAPTER, BASE = "adapter", "base.json"
UNSHARDED = "leave it out of runtime.sharded"
NOT_SHARDED = (
    "a model of type {!r} cannot be sharded: that takes layers that run on packed rows (Llama, Qwen, Gemma, …)\n"
    + UNSHARDED
)
UNSPREAD = "leave runtime.teacher_devices at 1"
NOT_SPREAD = (
    "a model of type {!r} cannot be spread over devices: that takes a decoder of stock layers alone (Llama, Qwen, …)\n"
    + UNSPREAD
)


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with its tokenizer."""

    model: Model
    tokenizer: Tokenizer
    base: dict[str, Any] | None = None  # of a model with an adapter: where the weights under it are, as in base.json

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether sources are read by an encoder; else they are the beginning of what is written."""
        return bool(self.model.config.is_encoder_decoder)

    @cached_property
    def num_tokens(self) -> int:
        """Size of the vocabulary that the tokenizer can name; an embedding may be padded beyond it."""
        return vocabulary_size(self.tokenizer)


def load_artifact(
    artifact: Artifact,
    device: Devices,
    beside: LoadedModel | None = None,
    answers: Path | None = None,
    *,
    sharded: bool = False,
) -> LoadedModel:
    """The model that a stage has made, or referred to; of a teacher behind a server, what asks it.

    device: or several, for a frozen model, see `laid_over`. beside: a model that is loaded already; where this one is
    the base under its adapter, its weights are taken. answers: the directory for what a server answers. sharded: see
    `shared_out`. Raises ValueError where there is no such directory, and a server to ask, and for a model that is to be
    sharded or spread and cannot be.
    """
    devices = [device] if isinstance(device, torch.device) else device
    if isinstance(artifact, Served):
        if answers is None:
            raise ValueError("the teacher is behind a server, and this stage needs its weights\nname one that is here")
        return LoadedModel(*load_served(artifact, *model_location(artifact)[:2], answers))
    found, adapter = model_location(artifact), artifact.path / ADAPTER
    under = None if beside is None or beside.base is None else _location(beside.base, artifact)
    if beside is not None and under == found and not adapter.is_dir():
        return LoadedModel(base_of(beside.model), beside.tokenizer)
    if adapter.is_dir():
        if sharded:
            raise ValueError(f"the {artifact.stage} is an adapter, and is not sharded\n{UNSHARDED}")
        return _adapted(adapter, found, devices[0])
    refers = artifact.path / "reference.json"
    if refers.is_file() and "served" in _read(refers):
        raise ValueError(
            f"the teacher in {artifact.path} is behind a server\nsay where that is: reached(teacher, endpoint)"
        )
    location, revision, dtype = found

    def load(device: torch.device) -> LoadedModel:
        tokenizer = load_tokenizer(location, revision)
        return LoadedModel(load_model(location, revision, dtype, device, tokenizer), tokenizer)

    if len(devices) > 1:
        return laid_over(load, devices)
    return shared_out(load, devices[0]) if sharded else load(devices[0])


def laid_over(load: Callable[[torch.device], LoadedModel], devices: Sequence[torch.device]) -> LoadedModel:
    """A frozen model whose layers are spread over devices of this process.

    One rank after another loads it whole into the memory of the CPU. Raises ValueError for a model with an encoder, and
    for one that is not run on its stock modules.
    """
    with Ranks.here().in_turn():
        loaded = load(torch.device("cpu"))
        check_spreadable(loaded.model)
        spread(loaded.model, devices)
    return loaded


def check_spreadable(model: Model) -> None:
    """Raise ValueError for a model of a family that cannot be spread; its weights are not looked at."""
    if model.config.model_type in OWN or model.config.is_encoder_decoder:
        raise ValueError(NOT_SPREAD.format(model.config.model_type))


def shared_out(load: Callable[[torch.device], LoadedModel], device: torch.device) -> LoadedModel:
    """A model whose layers the ranks that train share out; a rank that is alone has all of it.

    One rank after another loads it whole into the memory of the CPU, and puts its part on its device, a layer at a
    time. Raises ValueError for a model that is not run on packed rows of its stock modules.
    """
    ranks = Ranks.here()
    if ranks.size == 1:
        return load(device)
    with ranks.in_turn():
        loaded = load(torch.device("cpu"))
        check_shardable(loaded.model)
        shard(loaded.model, device)
    if backend_of(loaded.model) is not PACKED:  # tried out by all ranks together
        raise ValueError(NOT_SHARDED.format(loaded.model.config.model_type))
    return loaded


def check_shardable(model: Model) -> None:
    """Raise ValueError for a model of a family that cannot be sharded; its weights are not looked at."""
    if model.config.model_type in OWN or candidates(model)[0] is not PACKED:
        raise ValueError(NOT_SHARDED.format(model.config.model_type))


def _adapted(adapter: Path, base: Location, device: torch.device) -> LoadedModel:
    """A base with an adapter, which ends where the adapter learned to."""
    location, revision, dtype = base
    said, tokenizer = _read(adapter / BASE), load_tokenizer(adapter)
    model = load_model(location, revision, dtype, device, tokenizer)
    also_ends(model, said["ends"])
    load_adapter(model, adapter)
    return LoadedModel(model, tokenizer, said)


def load_pair(
    teacher: Artifact,
    student: Artifact,
    device: Devices,
    answers: Path | None = None,
    sharded: Sharded = "none",
) -> tuple[LoadedModel, LoadedModel]:
    """A teacher and its student, which is on the first device. Raises ValueError if they read different tokens.

    A student that is an adapter on this teacher shares its weights: they are loaded once.
    """
    home = device if isinstance(device, torch.device) else device[0]
    taught = load_artifact(student, home, sharded=sharded in ("student", "both"))
    in_parts = sharded in ("teacher", "both")
    pair = load_artifact(teacher, device, beside=taught, answers=answers, sharded=in_parts), taught
    check_same_tokenizer(*(each.tokenizer for each in pair))
    return pair


def load_alone(student: Artifact, teacher: Artifact, device: torch.device, sharded: Sharded = "none") -> LoadedModel:
    """A student whose teacher is not needed: its tokenizer is read, its weights are not.

    Raises ValueError if they read different tokens.
    """
    location, revision, _ = model_location(teacher)
    taught = load_artifact(student, device, sharded=sharded in ("student", "both"))
    check_same_tokenizer(load_tokenizer(location, revision), taught.tokenizer)
    return taught


def save_trained(loaded: LoadedModel, directory: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """What a stage that trains leaves in `directory`: the model, or its adapter alone. `weights`: of a sharded one."""
    if loaded.base is None:
        save_model(loaded.model, loaded.tokenizer, directory / "model", weights)
        return
    ends = loaded.model.config.eos_token_id
    said = loaded.base | {"ends": ends if isinstance(ends, list) else [ends]}
    save_adapter(loaded.model, directory / ADAPTER)
    save_tokenizer(loaded.tokenizer, directory / ADAPTER)
    (directory / ADAPTER / BASE).write_text(json.dumps(said, indent=2), encoding="utf-8")


def save_merged(artifact: Artifact, directory: Path) -> None:
    """Write the model that an adapter and its base are together, in float32 whatever the base is in."""
    location, revision, _ = model_location(artifact)
    loaded = _adapted(artifact.path / ADAPTER, (location, revision, "float32"), torch.device("cpu"))
    merge(loaded.model)
    save_model(loaded.model, loaded.tokenizer, directory)


def lone_head(artifact: Artifact, device: torch.device, num_tokens: int) -> Head:
    """A model's head without the model, in memory, down to the tokens that both tokenizers name."""
    return head_of(load_artifact(artifact, torch.device("cpu")).model, num_tokens).copied_to(device)


def model_location(artifact: Artifact) -> Location:
    """Directory or hub id, revision and dtype of an artifact's model, or of the base under its adapter.

    Raises StoreError if a directory is not, or no longer, the one that the artifact refers to.
    """
    made = artifact.path / "model"
    if made.is_dir():
        return made, None, "bfloat16" if read_config(made).get("dtype") == "bfloat16" else "float32"
    base = artifact.path / ADAPTER / BASE
    return _location(_read(base if base.is_file() else artifact.path / "reference.json"), artifact)


def _location(reference: dict[str, Any], artifact: Artifact) -> Location:
    """What an artifact refers to: a model somewhere, or another artifact of its store."""
    if "key" in reference:
        return model_location(Store(artifact.path.parents[2]).known_as(reference["stage"], reference["key"]))
    if reference["content"] is not None:
        _check_unchanged(artifact, Path(reference["name"]), reference["content"])
    return reference["name"], reference["revision"], reference["dtype"]


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _check_unchanged(artifact: Artifact, directory: Path, content: str) -> None:
    """Raise StoreError unless the directory has the content that the artifact's key stands for."""
    if directory.is_dir() and content_hash(directory) == content:
        return
    state = "has changed" if directory.is_dir() else "is not there any more"
    raise StoreError(
        f"the {artifact.stage} was in {directory}, which {state}\n"
        f"put the same model back there, or delete {artifact.path} so that the next run notes where it is now"
    )
