"""One round of DaD-DAgger's training, on the true windows and on what each round has added.

Shape legend: M windows, B windows of a batch, L tokens and P predictions of a window, D model width.

Where only the last block is trained, the frozen part of a window never changes, and neither does the teacher's
distribution after it: both come ready made, and an epoch costs one query of one block and the head a window. Where all
is trained, the windows come as tokens. Dropout is off: it would need the trunk's own noise, and the published models
have none. [ours]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kd_core.losses.head import Head
from kd_core.losses.lm_head import token_log_probs
from kd_core.losses.soft_targets import TeacherLabels, distillation_loss
from kd_core.models.policy import Model, head_of, laid_out
from kd_core.train.best import ran_out, remember, restore
from kd_core.train.ranks import ALONE, Ranks
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState, autocast
from kd_core.windows.last_block import last_hidden, trunk
from kd_core.windows.trunk import Trunk, TrunkPrecision


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
        if self.optimizer.precision == "bfloat16_weights":  # the best epoch's would be rounded, the frozen part is not
            raise ValueError("precision must be float32 or bfloat16 for training on windows, got 'bfloat16_weights'")


class Below(Protocol):
    """What lies below the last block of M windows: kept, or computed when it is asked for."""

    def of(self, model: Model, index_B: Tensor) -> Trunk:
        """The trunk of a batch of windows, on the model's device. Shapes: (B,) row numbers -> Trunk of B."""


@dataclass(frozen=True)
class Tokens:
    """Windows as their tokens: the whole model reads them each time, as it must where all of it is trained."""

    ids_ML: Tensor
    predictions: int
    precision: TrunkPrecision = "float32"

    def of(self, model: Model, index_B: Tensor) -> Trunk:
        """See `Below`; differentiable."""
        return trunk(model, self.ids_ML[index_B].to(model.device), self.predictions, self.precision)


@dataclass(frozen=True)
class Windows:
    """Windows ready to be learnt from."""

    below: Below  # of M windows; may be memory-mapped
    target_MP: Tensor
    labels: TeacherLabels | None  # of M*P predictions. None: only the true token is learnt (alpha 1)

    def __len__(self) -> int:
        return len(self.target_MP)


def train_windows(
    state: TrainState,
    train: Sequence[Windows],
    validation: Windows,
    settings: WindowTrainingSettings,
    seed: int,
    *,
    num_tokens: int | None = None,
    lay_out_head: bool = False,
) -> Iterator[StepMetrics]:
    """Minimise alpha * NLL + (1 - alpha) * KD over epochs, with early stopping on the validation loss.

    `train` is D_T in parts: the true windows, then what each round has added; batches are drawn from all of it alike.
    Yields one row an update and goes on from `state.step`. The weights of the best epoch travel in `state.best` and
    are put back when training ends. `lay_out_head`: a head that is not trained is laid out for this CPU once; its
    products round differently. Source: DaD-DAgger, Eq. 5 and the training details of section 4. Raises ValueError for
    an empty set of windows, and with alpha below 1 for windows without labels, before any update.
    """
    count = sum(len(part) for part in train)
    if count == 0 or len(validation) == 0:
        raise ValueError("there are no windows to train on" if count == 0 else "there are no validation windows")
    for number, part in enumerate(train):
        _refuse_unlabelled(part, f"part {number} of the training windows", settings.alpha)
    _refuse_unlabelled(validation, "the validation set", settings.alpha)
    state.model.eval()
    predictions_M = torch.cat([torch.full((len(part),), part.target_MP.shape[1]) for part in train])
    per_epoch, head = updates_per_epoch(train, settings), head_of(state.model, num_tokens)
    fixed = laid_out(head) if lay_out_head and not head.weight_VD.requires_grad else None
    while state.step < per_epoch * settings.epochs and not ran_out(state, settings.patience):
        epoch, done = divmod(state.step, per_epoch)
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))
        for index in order.split(settings.batch_rows)[done:]:
            of_update = train, index, predictions_M[index]
            values = _update(state, *of_update, settings, per_epoch, fixed or head_of(state.model, num_tokens))
            if state.step % per_epoch == 0:
                held_out = window_loss(
                    state.model, validation, settings.alpha, num_tokens=num_tokens, ranks=state.ranks
                )
                values |= {"validation_loss": held_out["loss"], "validation_nll": held_out["nll"]}
                remember(state, held_out["loss"])
            yield StepMetrics(state.step, values)
    restore(state)


def _refuse_unlabelled(windows: Windows, name: str, alpha: float) -> None:
    """Raise ValueError where the loss needs the teacher's labels and windows have none; no windows need none."""
    if alpha < 1 and len(windows) and windows.labels is None:
        raise ValueError(
            f"alpha {alpha} needs the teacher's labels, and {name} ({len(windows)} windows) has none\n"
            "label these windows too, or train with alpha 1 (the true tokens alone)"
        )


def updates_per_epoch(train: Sequence[Windows], settings: WindowTrainingSettings) -> int:
    """Updates of one pass over all windows."""
    return -(-sum(len(part) for part in train) // settings.batch_rows)


def _update(
    state: TrainState,
    train: Sequence[Windows],
    index_B: Tensor,
    predictions_B: Tensor,
    settings: WindowTrainingSettings,
    per_epoch: int,
    head: Head,
) -> dict[str, float]:
    model, seen = state.model, dict[str, list[Tensor]](loss=[], nll=[], kd=[])
    mine = state.ranks.mine(index_B, tokens_B=predictions_B)
    if len(mine):
        with autocast(model.device, settings.optimizer.precision):
            hidden_MD, target_M, labels = _batch(model, train, mine.rows_B, with_labels=settings.alpha < 1)
            loss, terms = distillation_loss(hidden_MD, head, target_M, labels, settings.alpha)
            share = len(target_M) / int(predictions_B.sum())  # 1, unless other ranks have the others
            loss = loss * share
        loss.backward()
        seen = {"loss": [loss], "nll": [terms.nll_M.mean() * share], "kd": [terms.kd_M.mean() * share]}
    shown = state.apply(settings.optimizer, per_epoch * settings.epochs, seen)
    state.step += 1
    return {name: sum(numbers) for name, numbers in shown.items()}


def _batch(
    model: Model, parts: Sequence[Windows], index_B: Tensor, *, with_labels: bool
) -> tuple[Tensor, Tensor, TeacherLabels | None]:
    """States (B*P, D), targets (B*P,) and labels of windows that are numbered through all parts."""
    trunks: list[Trunk] = []
    targets: list[Tensor] = []
    labels: TeacherLabels | None = None
    first = 0
    for part in parts:
        row_B = index_B[(index_B >= first) & (index_B < first + len(part))] - first
        first += len(part)
        if len(row_B) == 0:
            continue
        trunks.append(part.below.of(model, row_B))
        target_BP = part.target_MP[row_B]
        targets.append(target_BP.flatten())
        if with_labels:
            assert part.labels is not None  # refused before training
            place_M = (row_B[:, None] * target_BP.shape[1] + torch.arange(target_BP.shape[1])).flatten()
            found = part.labels.of(place_M, model.device)
            with torch.autocast(model.device.type, enabled=False):  # which on a CPU refuses to join float16
                labels = found if labels is None else labels.followed_by(found)
    if len({(each.behind_BXD.shape[1], each.last_BPD.shape[1]) for each in trunks}) == 1:
        hidden_MD = last_hidden(model, Trunk.cat(trunks))
    else:  # packed: what a round adds has other lengths than the true windows
        hidden_MD = torch.cat([last_hidden(model, each) for each in trunks])
    return hidden_MD, torch.cat(targets).to(hidden_MD.device), labels


@torch.no_grad()
def window_loss(
    model: Model,
    windows: Windows,
    alpha: float,
    batch_rows: int = 256,
    *,
    num_tokens: int | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Mean loss, NLL and KD over windows, in nats; NLL is the cross-entropy, e to its power the perplexity.

    Raises ValueError for alpha below 1 without labels.
    """
    _refuse_unlabelled(windows, "a set of windows", alpha)
    total, count = {"loss": 0.0, "nll": 0.0, "kd": 0.0}, windows.target_MP.numel()
    head = head_of(model, num_tokens)

    def sums(index: Tensor) -> dict[str, float]:
        hidden_MD, target_M, labels = _batch(model, [windows], index, with_labels=alpha < 1)
        if labels is None:
            nll = -float(token_log_probs(hidden_MD, head, target_M).sum())
            return {"loss": nll, "nll": nll, "kd": 0.0}
        loss, terms = distillation_loss(hidden_MD, head, target_M, labels, alpha)
        return {
            "loss": float(loss) * len(target_M),
            "nll": float(terms.nll_M.sum()),
            "kd": float(terms.kd_M.sum()),
        }

    for parts in ranks.map(sums, torch.arange(len(windows)).split(batch_rows)):
        total = {name: total[name] + value for name, value in parts.items()}
    return {name: value / count for name, value in total.items()}
