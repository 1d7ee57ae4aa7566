"""Cross-entropy on given outputs: SeqKD on the teacher's beams, or a small teacher's fitting on references.

    loss = alpha * NLL + (1 - alpha) * KD,    KD = -sum_w p(w) log q(w)        soft labels, where alpha is below 1

Shape legend: B rows, S source positions, T target positions, M real target tokens, D model width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kd_core.lengths import check_lengths, source_length, target_length
from kd_core.losses.lm_head import token_log_probs, weighted_nll
from kd_core.losses.soft_targets import distillation_loss
from kd_core.models.backends.pairs import check_fits, num_positions
from kd_core.models.backends.remote import RemoteModel, remote_nll
from kd_core.models.policy import Model, encode_rows, head_of, padded_rows, target_states
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.teacher_labels import OutputLabels
from kd_core.train.batches import BatchSettings, epoch_updates, updates
from kd_core.train.ranks import ALONE, Ranks
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState, autocast, dropout_rng


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings:
    """Training on (source, target) pairs."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    epochs: int = 1
    max_steps: int | None = None  # stop here if it comes before the end of the epochs
    max_source_tokens: int = source_length()
    max_target_tokens: int = target_length()
    validate_every: int = 200  # updates between two looks at the validation loss; 0 = at the end only
    validation_rows: int = 1000
    batch: BatchSettings = field(default_factory=BatchSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    # of the tokens that the teacher wrote; 1 - alpha of its distributions there, which needs labels of its outputs
    alpha: float = field(default=1.0, metadata={"later": True})

    def __post_init__(self) -> None:
        for name in ("epochs", "validation_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_lengths(self)
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if self.validate_every < 0:
            raise ValueError(f"validate_every must be 0 (off) or more, got {self.validate_every}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")


@dataclass(frozen=True)
class Pairs:
    """Tokenised sources and targets, row by row."""

    source: TokenRows
    target: TokenRows
    labels: OutputLabels | None = None  # the teacher's, of every target token


def num_updates(pairs: Pairs, settings: SupervisedSettings, seed: int) -> int:
    """Optimizer updates of the whole training."""
    lengths = pairs.source.lengths.numpy()
    total = sum(len(epoch_updates(lengths, settings.batch, seed, epoch)) for epoch in range(settings.epochs))
    return min(total, settings.max_steps or total)


def train_supervised(
    state: TrainState,
    train: Pairs,
    validation: Pairs,
    settings: SupervisedSettings,
    seed: int,
    *,
    num_steps: int | None = None,
    num_tokens: int | None = None,
) -> Iterator[StepMetrics]:
    """Minimise -log q(y|x), averaged over all target tokens of an update, and KD where alpha is below 1.

    Yields one row a step; goes on from `state.step`. `num_steps`, where given, is the number of updates in place of
    the settings' epochs. Labels are of the first `num_tokens` tokens, the others are left out there.

    Raises ValueError before the first update if a pair is longer than a causal model's positions, and if labels are
    wanted and there are none. Source: SeqKD, Kim and Rush 2016; LLMR section 3.
    """
    if settings.alpha < 1 and train.labels is None:
        raise ValueError(f"alpha {settings.alpha} needs the teacher's labels of its outputs\nset labels.kind=hidden")
    model, ranks, steps = state.model, state.ranks, num_steps or num_updates(train, settings, seed)
    check_positions(model, train)
    check_positions(model, validation, settings.validation_rows)
    lengths, tokens_R = train.source.lengths.numpy(), train.source.lengths + train.target.lengths
    for micro_batches in updates(lengths, settings.batch, seed, start=state.step):
        if state.step >= steps:
            break
        count = sum(int(train.target.lengths[rows].sum()) for rows in micro_batches)
        gathered: list[dict[str, Tensor]] = []
        model.train()
        for micro, rows in enumerate(micro_batches):
            mine = ranks.mine(rows, micro, tokens_R[rows])
            if not len(mine):
                continue
            dropout = dropout_rng(seed, state.step, micro, ranks.rank)
            with dropout, autocast(model.device, settings.optimizer.precision):
                shares = batch_loss(model, train, mine.rows_B, settings.alpha, count, num_tokens)
            if not mine.counts:
                shares = {name: 0 * share for name, share in shares.items()}
            shares["loss"].backward()
            gathered.append({name: share.detach() for name, share in shares.items()})
        names = dict.fromkeys(name for each in gathered for name in each)
        shown = state.apply(settings.optimizer, steps, {name: [each[name] for each in gathered] for name in names})
        state.step += 1
        values = {name: sum(numbers) for name, numbers in shown.items()} | {"tokens": float(count)}
        every = settings.validate_every
        if state.step == steps or (every and state.step % every == 0):
            values["validation_loss"] = cross_entropy(model, validation, settings.validation_rows, ranks)
        yield StepMetrics(state.step, values)
    model.eval()


def batch_loss(
    model: Model, train: Pairs, rows_B: Tensor, alpha: float, count: int, num_tokens: int | None
) -> dict[str, Tensor]:
    """A micro-batch's share of the loss of an update of `count` tokens; with labels, both terms' shares too."""
    hidden_MD, target_M = pair_states(model, train, rows_B)
    if alpha == 1 or train.labels is None:
        weight_M = hidden_MD.new_full(target_M.shape, 1 / count, dtype=torch.float32)
        return {"loss": weighted_nll(hidden_MD, head_of(model), target_M, weight_M)}
    labels = train.labels.of(rows_B, train.target.lengths[rows_B], model.device)
    loss, terms = distillation_loss(hidden_MD, head_of(model, num_tokens), target_M, labels, alpha)
    share = len(target_M) / count
    return {"loss": loss * share, "nll": terms.nll_M.sum() / count, "kd": terms.kd_M.sum() / count}


def pair_states(model: Model, pairs: Pairs, index_B: Tensor) -> tuple[Tensor, Tensor]:
    """The states that predict each target token of some pairs, and these tokens. Shapes: (B,) -> (M, D), (M,)."""
    target_BT, mask_BT = padded_rows(model, pairs.target, index_B)
    hidden_MD, layout = target_states(model, encode_rows(model, pairs.source, index_B), target_BT, mask_BT)
    return hidden_MD, layout.pack(target_BT)


def check_positions(model: Model, pairs: Pairs, rows: int | None = None) -> None:
    """A causal model has positions for each of the first `rows` pairs but its last token. Raises ValueError if not."""
    if not model.config.is_encoder_decoder and len(pairs.source):
        check_fits(int((pairs.source.lengths + pairs.target.lengths)[:rows].max()) - 1, num_positions(model))


@torch.no_grad()
def cross_entropy(model: Model, pairs: Pairs, max_rows: int, ranks: Ranks = ALONE) -> float:
    """Mean -log q of the target tokens, in nats, over the first `max_rows` rows, which ranks share out."""
    rows = min(max_rows, len(pairs.source))
    if isinstance(model, RemoteModel):
        return remote_nll(model, pairs.source.lists()[:rows], pairs.target.lists()[:rows])
    model.eval()

    def log_prob(index: Tensor) -> float:
        hidden_MD, target_M = pair_states(model, pairs, index)
        return token_log_probs(hidden_MD, head_of(model), target_M).sum().item()

    total = 0.0
    for summed in ranks.map(log_prob, torch.arange(rows).split(64)):
        total -= summed
    return total / int(pairs.target.lengths[:rows].sum())
