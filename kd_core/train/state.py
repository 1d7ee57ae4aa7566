"""What the training loops share: optimizer settings, the state that a checkpoint must hold, one metric row a step."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.hooks import RemovableHandle

from kd_core.models.backends.sharded import cut, gradient_of, is_part, joined, own_parameters, part_of
from kd_core.precision import precision_field, require_precision
from kd_core.rollout.responses import NotFiniteError
from kd_core.rollout.sampling import mixed_seed
from kd_core.train.in_flight import whole
from kd_core.train.ranks import ALONE, Ranks

PRECISIONS = "set bfloat16 (weights and optimizer state are shared out in float32), or float32"


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Adam. Defaults: the published scripts of LLMR's predecessor (inferred: the paper gives none)."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    learning_rate: float = 1e-5
    schedule: Literal["constant", "linear"] = "constant"  # linear: down to exactly 0 at the last step
    warmup_steps: int = 0  # updates on the way up, before the first at the full rate
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0  # 0 = off
    # bfloat16: autocast, weights stay float32; bfloat16_weights: they are bfloat16, and float32 masters are updated
    precision: Literal["float32", "bfloat16", "bfloat16_weights", "auto"] = precision_field()

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.schedule not in ("constant", "linear"):
            raise ValueError(f"schedule must be constant or linear, got {self.schedule!r}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")
        if self.max_grad_norm < 0:
            raise ValueError(f"max_grad_norm must be 0 (off) or more, got {self.max_grad_norm}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")

    def rate_at(self, step: int, num_steps: int) -> float:
        """Learning rate of update `step` (1, 2, …) of `num_steps`.

        The first update after the warm-up has the full rate, and with `linear` the last has 0; where these are one
        update, it has the full rate: it would learn nothing otherwise.
        """
        rate = self.learning_rate
        if step <= self.warmup_steps:
            return rate * step / (self.warmup_steps + 1)
        if self.schedule == "linear" and num_steps > self.warmup_steps + 1:
            rate *= (num_steps - step) / (num_steps - self.warmup_steps - 1)
        return rate


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer update showed. Values are plain numbers, ready to be logged."""

    step: int
    values: Mapping[str, float]


@dataclass
class TrainState:
    """All that must survive a kill: weights, optimizer, steps done, and whatever tensors a method has in flight."""

    model: Any
    optimizer: torch.optim.Adam
    parameters: dict[str, Tensor]  # of the model, by name: those that are trained
    trained: dict[
        str, Tensor
    ]  # by the same names what the optimizer updates: these, their masters, or this rank's parts
    hooks: list[RemovableHandle] = field(default_factory=list)  # by which masters come to their gradients
    step: int = 0
    in_flight: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)  # what `kd_core.train.best` remembers
    ranks: Ranks = ALONE  # who trains together; all but what is in flight is the same on each

    @classmethod
    def start(cls, model: Any, settings: OptimizerSettings, ranks: Ranks = ALONE) -> "TrainState":
        """A fresh state for `model`, of which all parameters are trained that are not frozen."""
        parameters = own_parameters(model)
        in_parts = any(map(is_part, parameters.values()))
        if in_parts and settings.precision == "bfloat16_weights":
            raise ValueError(f"a sharded model is not trained with precision bfloat16_weights\n{PRECISIONS}")
        masters = [_master(p) for p in parameters.values()] if settings.precision == "bfloat16_weights" else []
        trained = (
            {name: master for name, (master, _) in zip(parameters, masters, strict=True)}
            if masters
            else {name: part_of(p) for name, p in parameters.items()}
        )
        fused = next(model.parameters()).device.type in ("cpu", "cuda")
        optimizer = torch.optim.Adam(trained.values(), lr=settings.learning_rate, betas=settings.betas, fused=fused)
        return cls(model, optimizer, parameters, trained, [hook for _, hook in masters], ranks=ranks)

    def apply(
        self, settings: OptimizerSettings, num_steps: int, seen: Mapping[str, Sequence[Tensor]]
    ) -> dict[str, list[float]]:
        """One optimizer update from the gradients at hand, those of the losses in `seen`, of all ranks.

        Returns what was seen as numbers, and as `grad_norm` the gradients' norm before clipping: a device is waited for
        this once. Raises NotFiniteError, before a weight is touched, if the losses' sum or the norm is not finite.
        """
        trained = list(self.trained.values())
        norm = self._sum_gradients()
        clip_grads_with_norm_(trained, settings.max_grad_norm or float("inf"), norm)
        numbers = fetched({**seen, "grad_norm": [norm]})
        numbers = self.ranks.joined({name: numbers[name] for name in seen}) | {"grad_norm": numbers["grad_norm"]}
        for name in ("loss", "grad_norm"):
            value = sum(numbers[name])
            if not math.isfinite(value):
                raise NotFiniteError(f"{name} is {value}\nlower the learning rate")
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate_at(self.step + 1, num_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.round()
        return numbers

    def _sum_gradients(self) -> Tensor:
        """Give what is trained its gradient over all ranks; returns the norm of the whole model's."""
        same, parts = list[Tensor](), list[Tensor]()  # on every rank, and of its own
        for name, x in self.trained.items():
            (parts if is_part(self.parameters[name]) else same).append(x)
            if is_part(self.parameters[name]):  # summed on the way back
                x.grad = gradient_of(self.parameters[name])
        self.ranks.add_gradients(same)
        norm, of_parts = (get_total_norm([x.grad for x in each if x.grad is not None]) for each in (same, parts))
        return (norm**2 + self.ranks.total(of_parts**2)).sqrt() if parts else norm

    @torch.no_grad()
    def round(self) -> None:
        """Give the model its weights, where it has masters."""
        for name, master in self.trained.items():
            if self.parameters[name] is not master and not is_part(self.parameters[name]):
                self.parameters[name].copy_(master)

    def finish(self) -> None:
        """Leave the model with what was trained, in full precision: nothing is rounded from one stage to the next."""
        for hook in self.hooks:
            hook.remove()
        for name, master in self.trained.items():
            if not is_part(self.parameters[name]):
                self.parameters[name].data = master.data

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by its names there: as one process has it, whoever has which part of it.

        Weights, the best so far, optimizer state and tensors in flight. All ranks call it; the first has all of it.
        """
        own = {f"model.{name}": (name, tensor.detach()) for name, tensor in self.trained.items()}
        for name, tensor in self.trained.items():
            for key, value in self.optimizer.state.get(tensor, {}).items():
                own[f"optimizer.{key}.{name}"] = name, value
        own |= {f"best.{key}": (key.removeprefix("weights."), tensor) for key, tensor in self.best.items()}
        found = {}
        for key, (name, tensor) in own.items():
            if name in self.parameters and is_part(self.parameters[name]):
                all_of_it = joined(tensor, self.parameters[name])
                tensor = all_of_it.cpu() if self.ranks.is_first else tensor
            found[key] = tensor
        return found | {
            f"in_flight.{name}": tensor.clone() for name, tensor in whole(self.in_flight, self.ranks).items()
        }

    def save(self, directory: Path, log: list[StepMetrics], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write a checkpoint and the log so far, without pickle, in which nothing says how many ranks there were.

        The first of several ranks does so, with `tensors()` of all.
        """
        tensors = self.tensors() if tensors is None else tensors
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "state.safetensors")
        rows = [{"step": row.step, **row.values} for row in log]
        (directory / "state.json").write_text(json.dumps({"step": self.step, "log": rows}), encoding="utf-8")

    def load(self, directory: Path) -> list[StepMetrics]:
        """Put a saved state back; returns the log so far. What is in flight is that of all ranks: see `dealt`."""
        record = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        self.step = int(record["step"])
        device = next(self.model.parameters()).device
        with safe_open(directory / "state.safetensors", "pt", device=str(device)) as file:
            names = set(file.keys())
            with torch.no_grad():
                for name, tensor in self.trained.items():  # what is frozen is as it was loaded
                    like = self.parameters[name]
                    tensor.copy_(cut(file.get_tensor(f"model.{name}"), like))
                    keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{key}.{name}" in names]
                    saved = {key: cut(file.get_tensor(f"optimizer.{key}.{name}"), like) for key in keys}
                    self.optimizer.state[tensor] = saved
            self.in_flight, self.best = (
                {n.removeprefix(prefix): file.get_tensor(n) for n in names if n.startswith(prefix)}
                for prefix in ("in_flight.", "best.")
            )
        for name, like in self.parameters.items():
            if f"weights.{name}" in self.best:
                self.best[f"weights.{name}"] = cut(self.best[f"weights.{name}"], like)
        self.round()
        return [StepMetrics(int(row.pop("step")), row) for row in record["log"]]


def _master(parameter: Tensor) -> tuple[Tensor, RemovableHandle]:
    """A parameter's value in float32, and the hook that brings it gradients; the parameter itself becomes bfloat16.

    Gradients of several micro-batches are summed in float32, and no more than one of bfloat16 is ever kept.
    """
    master = torch.nn.Parameter(parameter.detach().float())
    parameter.data = parameter.detach().bfloat16()

    def gather(rounded: Tensor) -> None:
        assert rounded.grad is not None  # it has just been written
        gradient = rounded.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        rounded.grad = None

    return master, parameter.register_post_accumulate_grad_hook(gather)


def fetched(seen: Mapping[str, Sequence[Tensor]]) -> dict[str, list[float]]:
    """Tensors of one number each as numbers, by one transfer from their device; counts are exact up to 2^24."""
    flat = [x.detach() for parts in seen.values() for x in parts]
    if not flat:  # a rank that has no rows of a batch
        return {name: [] for name in seen}
    dtype = reduce(torch.promote_types, (x.dtype for x in flat), torch.float32)
    numbers = iter(torch.stack([x.to(dtype) for x in flat]).tolist())
    return {name: [next(numbers) for _ in parts] for name, parts in seen.items()}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision where asked for; otherwise nothing. Raises ValueError for one that is still to be chosen."""
    require_precision("precision", precision)
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def dropout_rng(seed: int, step: int, micro_batch: int, rank: int = 0) -> Iterator[None]:
    """Dropout that depends on (seed, step, micro-batch, rank) alone: a resumed run draws what an unbroken one did.

    The global random state is put back afterwards.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(mixed_seed(seed, step, micro_batch, *([rank] if rank else [])))
        yield
