"""Exact windows over a text, and the student's free running from them.

Shape legend: N tokens of a text, B trajectories, H context tokens, L tokens of a window, P predictions of a window,
T steps, M windows, V vocabulary.

An exact window is H tokens at positions 0 to H-1 and the token that follows. A packed one is L = H + P - 1 tokens and
the P that follow the last P of them: P predictions, each after H to L tokens, for one pass. Free running starts at a
true window: each step takes in what the student wrote (and drops the oldest token, unless windows are packed), while
the true text goes on beside it. That gives both what DaD-DAgger adds to its data (the student's context, the true next
token) and the free-running cross-entropy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.lm_head import full_precision
from kd_core.models.policy import Model, head_weight
from kd_core.rollout.sampling import SamplingSettings, draw
from kd_core.training import check_distribution
from kd_core.windows.gpt_neo import Trunk, last_hidden, trunk


def window_targets(num_tokens: int, context: int, stride: int = 1, predictions: int = 1) -> Tensor:
    """The first position in the text that each window predicts: it has `context` tokens before it. Shapes: -> (M,).

    A rest of the text that is shorter than a window's predictions is left out. Raises ValueError for a text without a
    single window.
    """
    if num_tokens < context + predictions:
        what = "one to predict" if predictions == 1 else f"{predictions} to predict"
        raise ValueError(f"a text of {num_tokens} tokens has no window of {context} tokens and {what}")
    return torch.arange(context, num_tokens - predictions + 1, stride)


def trajectory_starts(num_tokens: int, context: int, horizon: int, stride: int) -> Tensor:
    """Where trajectories of context + horizon tokens start. Shapes: -> (B,).

    A stride of context + horizon cuts the text into pieces, as Algorithm 1 reads; a stride of `horizon` predicts every
    token once. Raises ValueError for a text shorter than one trajectory.
    """
    if num_tokens < context + horizon:
        raise ValueError(
            f"a text of {num_tokens} tokens is shorter than one trajectory: context {context} + horizon {horizon}"
        )
    return torch.arange(0, num_tokens - context - horizon + 1, stride)


def contexts(text_N: Tensor, target_M: Tensor, context: int, predictions: int = 1) -> Tensor:
    """What a window sees: the tokens before its first target, and those but the last that it predicts.

    Shapes: (N,), (M,) positions -> (M, L) with L = context + predictions - 1.
    """
    return text_N[target_M[:, None] - context + torch.arange(context + predictions - 1, device=target_M.device)]


def followers(text_N: Tensor, target_M: Tensor, predictions: int) -> Tensor:
    """What a window predicts. Shapes: (N,), (M,) positions -> (M, P)."""
    return text_N[target_M[:, None] + torch.arange(predictions, device=target_M.device)]


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How a text becomes windows. Defaults: the paper's."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    context: int = 128  # H, in tokens
    mode: Literal["exact", "packed"] = "exact"  # packed: one pass for several predictions, after H or more tokens
    stride: int = 1  # exact: every how many tokens a window is trained on; 1 = every token is predicted
    predictions: int = 128  # packed: of a window

    def __post_init__(self) -> None:
        if self.mode not in ("exact", "packed"):
            raise ValueError(f"mode must be exact or packed, got {self.mode!r}")
        for name in ("context", "stride", "predictions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def width(self) -> int:
        """P, the predictions of one window."""
        return self.predictions if self.mode == "packed" else 1

    @property
    def longest(self) -> int:
        """L, the tokens of one window: what a model must have positions for."""
        return self.context + self.width - 1

    def targets(self, num_tokens: int) -> Tensor:
        """The first target of each window over a text. Packed windows lie side by side."""
        return window_targets(num_tokens, self.context, self.width if self.width > 1 else self.stride, self.width)


@dataclass(frozen=True)
class FreeStep:
    """One step of free running in B trajectories."""

    context_BL: Tensor  # what the student sees: the true text at step 0, more and more of its own after
    below: Trunk  # what its frozen part makes of that: need not be computed again to train on these windows
    nll_B: Tensor  # -log q of the true next token, in nats
    token_B: Tensor  # what it writes instead


@torch.no_grad()
def free_run(
    model: Model,
    context_BH: Tensor,
    true_BT: Tensor,
    uniform_BT: Tensor,
    settings: SamplingSettings,
    *,
    sliding: bool = True,
    num_tokens: int | None = None,
) -> Iterator[FreeStep]:
    """The student runs free for T steps from true contexts, one `FreeStep` a step.

    Shapes: (B, H) ids, (B, T) the text that goes on, (B, T) uniform numbers in [0, 1) that choose the tokens. Sliding
    contexts stay H tokens long, as in exact windows; the others grow. Source: DaD-DAgger, Algorithm 1 (rollout), and
    its free-running cross-entropy. Raises NotFiniteError at the end for a model that writes from nan.
    """
    context_BL, log_probs = context_BH, []
    weight_VD = head_weight(model, num_tokens)
    for step in range(true_BT.shape[1]):
        below = trunk(model, context_BL)
        logits_BV = F.linear(last_hidden(model, below), weight_VD)
        true_B = true_BT[:, step]
        nll_B = F.cross_entropy(full_precision(logits_BV), true_B, reduction="none")
        token_B, log_prob_B = draw(logits_BV, uniform_BT[:, step], settings)
        log_probs.append(log_prob_B)
        yield FreeStep(context_BL, below, nll_B, token_B)
        context_BL = torch.cat([context_BL[:, int(sliding) :], token_B[:, None]], dim=1)
    check_distribution(torch.cat(log_probs))


@dataclass(frozen=True)
class FreeRunning:
    """What free running over a text showed. Step 0 still sees the true text alone."""

    nll_BT: Tensor  # -log q of the true token at each step, in nats; its mean is the free-running cross-entropy
    token_BT: Tensor  # what the student wrote
    left_BT: Tensor  # whether that is another token than the text has


def free_running(
    model: Model,
    text_N: Tensor,
    start_B: Tensor,
    context: int,
    horizon: int,
    seed: int,
    *,
    sampling: SamplingSettings,
    num_tokens: int | None = None,
    batch_rows: int = 64,
) -> Iterator[FreeRunning]:
    """The student's free-running cross-entropy from every start, step by step; a batch of starts at a time.

    Shapes: (N,) ids, (B,) positions where contexts start -> `FreeRunning` of (B, horizon) in all. Source: DaD-DAgger's
    metric over 10 generated tokens; the random numbers of a start depend on the seed and its place alone.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform_BT = torch.rand((len(start_B), horizon), generator=generator).to(text_N.device)
    for rows in torch.arange(len(start_B)).split(batch_rows):
        first_B = start_B[rows] + context
        true_BT = followers(text_N, first_B, horizon)
        first_BH = contexts(text_N, first_B, context)
        steps = list(free_run(model, first_BH, true_BT, uniform_BT[rows], sampling, num_tokens=num_tokens))
        token_BT = torch.stack([step.token_B for step in steps], dim=1)
        yield FreeRunning(torch.stack([step.nll_B for step in steps], dim=1), token_BT, token_BT != true_BT)
