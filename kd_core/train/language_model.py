"""Pre-training a small causal model on running text: blocks of tokens, every position a prediction.

Shape legend: N tokens of a text, B blocks, L tokens of a block, D model width.

For the GPT-Neos that are described by their shape; published models come pre-trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kd_core.losses.lm_head import token_log_probs, weighted_nll
from kd_core.models.gpt_neo import Model, layer_norm, unpadded_states
from kd_core.models.policy import head_of
from kd_core.train.ranks import ALONE, Ranks
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState, autocast


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """All of these are ours: the paper's models come pre-trained."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    block: int = 128  # tokens that are read at once
    batch_rows: int = 32
    max_steps: int = 2000
    validate_every: int = 200  # updates; 0 = at the end only
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(learning_rate=2e-3, schedule="linear", warmup_steps=100)
    )

    def __post_init__(self) -> None:
        for name in ("block", "batch_rows", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.validate_every < 0:
            raise ValueError(f"validate_every must be 0 (at the end only) or more, got {self.validate_every}")


def train_language_model(
    state: TrainState, text_N: Tensor, held_out_N: Tensor, settings: PretrainSettings, seed: int
) -> Iterator[StepMetrics]:
    """Minimise the cross-entropy of every token given those before it in its block; goes on from `state.step`.

    Each epoch cuts the text anew, at an offset of its own. Dropout is off. Raises ValueError for a text shorter than
    two blocks, or held-out text shorter than one.
    """
    model = state.model
    if len(text_N) < 2 * settings.block + 1 or len(held_out_N) < settings.block + 1:
        sizes = f"{len(text_N):,} tokens to train on, {len(held_out_N):,} held out"
        raise ValueError(f"the text is shorter than its blocks of {settings.block} tokens: {sizes}\ngive more text")
    model.eval()
    for index in _batches(len(text_N), settings, seed, state.step):
        losses, mine, count = [], state.ranks.mine(index), len(index) * settings.block
        if len(mine):
            block_BL = text_N[mine.rows_B[:, None] + torch.arange(settings.block + 1)].to(model.device)
            with autocast(model.device, settings.optimizer.precision):
                hidden_MD, target_M = all_hidden(model, block_BL[:, :-1]), block_BL[:, 1:].flatten()
                weight_M = torch.full(target_M.shape, 1 / count, device=model.device)
                losses = [weighted_nll(hidden_MD, head_of(model), target_M, weight_M)]
            losses[0].backward()
        shown = state.apply(settings.optimizer, settings.max_steps, {"loss": losses})
        state.step += 1
        values = {name: sum(numbers) for name, numbers in shown.items()} | {"tokens": float(count)}
        every = settings.validate_every
        if state.step == settings.max_steps or (every and state.step % every == 0):
            values["validation_loss"] = text_loss(model, held_out_N, settings.block, ranks=state.ranks)
        yield StepMetrics(state.step, values)


def _batches(num_tokens: int, settings: PretrainSettings, seed: int, done: int) -> Iterator[Tensor]:
    """Where the blocks of each update start. Shapes: -> (B,)."""
    step = 0
    for epoch in range(settings.max_steps):
        rng = np.random.default_rng([seed, epoch])
        starts = np.arange(rng.integers(settings.block), num_tokens - settings.block, settings.block)
        order = torch.from_numpy(rng.permutation(starts))
        for index in order.split(settings.batch_rows):
            if step >= settings.max_steps:
                return
            if step >= done:
                yield index
            step += 1


def all_hidden(model: Model, ids_BL: Tensor) -> Tensor:
    """The final states of all positions. Shapes: (B, L) -> (B*L, D)."""
    stack = model.transformer
    return layer_norm(unpadded_states(model, ids_BL, len(stack.h)), stack.ln_f).flatten(0, 1)


@torch.no_grad()
def text_loss(model: Model, text_N: Tensor, block: int, batch_rows: int = 32, *, ranks: Ranks = ALONE) -> float:
    """Mean -log q over a text that is cut into blocks, in nats a token: less context than exact windows give."""
    starts = torch.arange(0, len(text_N) - block, block)

    def log_prob(index: Tensor) -> float:
        block_BL = text_N[index[:, None] + torch.arange(block + 1)].to(model.device)
        hidden_MD = all_hidden(model, block_BL[:, :-1])
        return float(token_log_probs(hidden_MD, head_of(model), block_BL[:, 1:].flatten()).sum())

    total = 0.0
    for summed in ranks.map(log_prob, starts.split(batch_rows)):
        total -= summed
    return total / (len(starts) * block)
