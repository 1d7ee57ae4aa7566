"""One round of DaD-DAgger's training: the last block on windows whose lower blocks were computed once.

Shape legend: M windows, B windows of a batch, H context tokens, D model width.

The frozen part of a window never changes, and neither does the teacher's distribution after it: both come ready made,
and an epoch costs one query of one block and the head a window. Dropout is off: it would need the trunk's own noise,
and the published models have none. [ours]
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kd_core.gpt_neo import Model, Trunk, last_hidden
from kd_core.lm_head import token_log_probs
from kd_core.soft_targets import TeacherLabels, distillation_loss
from kd_core.training import OptimizerSettings, StepMetrics, TrainState, autocast


@dataclass(frozen=True, kw_only=True)
class WindowTrainingSettings:
    """Defaults: the paper's (alpha is its middle one)."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    alpha: float = 0.5  # of the true token; 1 - alpha of the teacher's distribution
    epochs: int = 4
    patience: int = 1  # epochs without a lower validation loss before training stops; 0 = never stops early
    batch_rows: int = 32
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=2.5e-5))

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        for name in ("epochs", "batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.patience < 0:
            raise ValueError(f"patience must be 0 (off) or more, got {self.patience}")


@dataclass(frozen=True)
class Windows:
    """Windows ready to be learnt from."""

    below: Trunk  # of M windows; may be memory-mapped
    target_M: Tensor
    labels: TeacherLabels | None  # None: only the true token is learnt (alpha 1)

    def __len__(self) -> int:
        return len(self.target_M)


def train_windows(
    state: TrainState, train: Windows, validation: Windows, settings: WindowTrainingSettings, seed: int
) -> Iterator[StepMetrics]:
    """Minimise alpha * NLL + (1 - alpha) * KD over epochs, with early stopping on the validation loss.

    Yields one row an update and goes on from `state.step`. The weights of the best epoch travel in `state.in_flight`
    and are put back when training ends. Source: DaD-DAgger, Eq. 5 and the training details of section 4. Raises
    ValueError for an empty set of windows.
    """
    if len(train) == 0 or len(validation) == 0:
        raise ValueError("there are no windows to train on" if len(train) == 0 else "there are no validation windows")
    per_epoch = -(-len(train) // settings.batch_rows)
    while state.step < per_epoch * settings.epochs and not _stopped(state, settings):
        epoch, done = divmod(state.step, per_epoch)
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(train)))
        for index in order.split(settings.batch_rows)[done:]:
            values = _update(state, train, index, settings, per_epoch)
            if state.step % per_epoch == 0:
                values["validation_loss"] = window_loss(state.model, validation, settings.alpha)["loss"]
                _remember(state, values["validation_loss"])
            yield StepMetrics(state.step, values)
    _restore(state)


def _update(
    state: TrainState, train: Windows, index: Tensor, settings: WindowTrainingSettings, per_epoch: int
) -> dict[str, float]:
    model = state.model
    labels = None if train.labels is None or settings.alpha == 1 else train.labels.of(index)
    with autocast(model.device, settings.optimizer.precision):
        hidden_BD = last_hidden(model, train.below.rows(index))
        loss, terms = distillation_loss(hidden_BD, model.lm_head.weight, train.target_M[index], labels, settings.alpha)
    loss.backward()
    norm = state.apply(settings.optimizer, per_epoch * settings.epochs)
    state.step += 1
    return {"loss": loss.item(), "nll": float(terms.nll_M.mean()), "kd": float(terms.kd_M.mean()), "grad_norm": norm}


@torch.no_grad()
def window_loss(model: Model, windows: Windows, alpha: float, batch_rows: int = 256) -> dict[str, float]:
    """Mean loss, NLL and KD over windows, in nats; NLL is the cross-entropy, e to its power the perplexity."""
    total = {"loss": 0.0, "nll": 0.0, "kd": 0.0}
    weight_VD = model.lm_head.weight
    for index in torch.arange(len(windows)).split(batch_rows):
        hidden_BD, target_B = last_hidden(model, windows.below.rows(index)), windows.target_M[index]
        if windows.labels is None or alpha == 1:
            nll = -float(token_log_probs(hidden_BD, weight_VD, target_B).sum())
            parts = {"loss": nll, "nll": nll, "kd": 0.0}
        else:
            loss, terms = distillation_loss(hidden_BD, weight_VD, target_B, windows.labels.of(index), alpha)
            parts = {"loss": float(loss) * len(index), "nll": float(terms.nll_M.sum()), "kd": float(terms.kd_M.sum())}
        total = {name: total[name] + value for name, value in parts.items()}
    return {name: value / len(windows) for name, value in total.items()}


def _remember(state: TrainState, loss: float) -> None:
    """Keep the weights if this epoch is the best so far, and count the epochs since then."""
    best = state.in_flight.get("best_loss")
    if best is not None and loss >= float(best):
        state.in_flight["worse"] = state.in_flight["worse"] + 1
        return
    kept = {f"best.{name}": p.detach().clone() for name, p in state.model.named_parameters() if p.requires_grad}
    state.in_flight = kept | {"best_loss": torch.tensor(loss, dtype=torch.float64), "worse": torch.tensor(0)}


def _stopped(state: TrainState, settings: WindowTrainingSettings) -> bool:
    worse = state.in_flight.get("worse")
    return bool(settings.patience and worse is not None and int(worse) >= settings.patience)


@torch.no_grad()
def _restore(state: TrainState) -> None:
    for name, parameter in state.model.named_parameters():
        if f"best.{name}" in state.in_flight:
            parameter.copy_(state.in_flight[f"best.{name}"])
    state.in_flight = {}
