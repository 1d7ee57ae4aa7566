"""Windows over a text: where they lie, and what each sees and predicts.

Shape legend: N tokens of a text, B trajectories, H context tokens, L tokens of a window, P predictions of a window,
M windows.

An exact window is H tokens at positions 0 to H-1 and the token that follows. A packed one is L = H + P - 1 tokens and
the P that follow the last P of them: P predictions, each after H to L tokens, for one pass.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


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
