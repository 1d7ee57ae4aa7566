"""Adapters: a base whose weights stay as they are, and low-rank additions to its matrices, which alone are trained.

    W x + alpha / rank B A x,   A (rank, in), B (out, rank)

Hu et al. 2021, by `peft`: its layers stand in place of the base's linear ones, inside the stock model. Code that reads
a module's `weight` and goes round its forward pass would pass over them in silence, so our own T5 and GPT-Neo do not
run such a model (`policy.backend_of`).
"""

import copy
import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

Model = Any  # transformers ships no types
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as peft calls them


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What is added to a base. B starts at 0, so that the student starts as its base."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    rank: int = 16
    alpha: float = 32.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"  # matrices by name, such as q_proj; not the head
    dropout: float = 0.0  # of A's input, in supervised training

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not self.targets:
            raise ValueError("targets must be all-linear or names of matrices, got none")
        if find_spec("peft") is None:
            raise ValueError(
                "lora needs peft, which is not installed\ninstall it with: pip install 'distill-llm[lora]'"
            )


def has_adapter(model: Model) -> bool:
    """Whether a model's own weights are not all that it computes with."""
    return getattr(model, "peft_config", None) is not None


def targeted(model: Model, settings: LoraSettings) -> list[str]:
    """The matrices of a model that are added to, by their full names.

    Raises ValueError for a target that there is not, naming those that there are.
    """
    there = list(_matrices(model))
    if settings.targets == "all-linear":
        return there
    for target in settings.targets:
        if not any(_is_called(name, target) for name in there):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in there}))
            raise ValueError(f"lora.targets: a {model.config.model_type} has no matrix {target!r}\nit has: {known}")
    return [name for name in there if any(_is_called(name, target) for target in settings.targets)]


def _matrices(model: Model) -> dict[str, Any]:
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    return {name: each for name, each in model.named_modules() if isinstance(each, kinds) and each is not head}


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def add_adapter(model: Model, settings: LoraSettings, seed: int) -> None:
    """Freeze a model and add an adapter to it in place, A drawn from `seed`.

    The adapter is in float32 where the base is in half precision. Raises ValueError as `targeted` does.
    """
    from peft import LoraConfig

    names = targeted(model, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names,
        fan_in_fan_out=not isinstance(model.get_submodule(names[0]), torch.nn.Linear),  # GPT-2's lie the other way
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model, config)


def _inject(model: Model, config: Any) -> None:
    from peft.functional import cast_adapter_dtype, inject_adapter_in_model

    training = model.training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of matrices that lie this way or that, which peft puts right itself
        inject_adapter_in_model(config, model)
    cast_adapter_dtype(model, "default")
    model.train(training)


def save_adapter(model: Model, directory: Path) -> None:
    """Write a directory that peft's `from_pretrained` loads onto the same base; the same adapter, the same bytes."""
    directory.mkdir()
    config = {name: value for name, value in model.peft_config["default"].to_dict().items() if value is not None}
    config.pop("peft_version")
    record = {name: sorted(value) if isinstance(value, set | list) else value for name, value in config.items()}
    (directory / CONFIG).write_text(json.dumps(record, indent=2, sort_keys=True), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in _tensors(model).items()}, directory / WEIGHTS)


def load_adapter(model: Model, directory: Path) -> None:
    """Add an adapter that was saved to its base, in place. Raises ValueError where it is of another one."""
    from peft import LoraConfig

    _inject(model, LoraConfig.from_pretrained(directory))
    saved, own = load_file(directory / WEIGHTS, device=str(model.device)), _tensors(model)
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (saved, own)]
    if shapes[0] != shapes[1]:
        name, _ = min(shapes[0].items() ^ shapes[1].items())
        raise ValueError(f"the adapter {directory} is not of this base: {name} is not alike in both")
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _tensors(model: Model) -> dict[str, torch.Tensor]:
    """What an adapter learns, under the names that peft's own models save it by."""
    from peft.functional import get_peft_model_state_dict

    return {f"base_model.model.{name}": tensor.detach() for name, tensor in get_peft_model_state_dict(model).items()}


def base_of(model: Model) -> Model:
    """The base of a model with an adapter, as a model of its own over the same tensors: it takes no memory."""
    tensors = (*model.parameters(), *model.buffers())
    base = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    _take_off(base, merge=False)
    return base


def merge(model: Model) -> None:
    """Add the adapter to the base's weights, in place: a model like any other, in the base's precision."""
    _take_off(model, merge=True)


@torch.no_grad()
def _take_off(model: Model, *, merge: bool) -> None:
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            base = layer.get_base_layer()
            if merge:
                base.weight += layer.get_delta_weight("default").to(base.weight.dtype)
            model.set_submodule(name, base)
    del model.peft_config
