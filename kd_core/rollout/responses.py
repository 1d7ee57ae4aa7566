"""What a model has written: its tokens, the mask that says where they end, and whether the length limit cut them off.

Shape legend: B rows, T target positions.

There is one mask for rollout, teacher and student, and it is never built from `!= pad`: T5's pad is its decoder start
and GPT-Neo's pad is its end of sequence. It ends at the first end-of-sequence token, inclusive, so that ending is an
action that is learned and scored like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Ends = int | Sequence[int]  # the token that ends a text, or several of which any does, as a model's config has them


@dataclass(frozen=True)
class Responses:
    """Texts as written. Padding after the end is `pad_id`; `mask_BT` is the only thing that says where it is."""

    tokens_BT: Tensor
    mask_BT: Tensor  # True through the first end of sequence
    truncated_B: Tensor  # True where the limit came before the end of sequence


@dataclass(frozen=True)
class Rollout(Responses):
    """Sampled outputs."""

    log_prob_BT: Tensor  # log-probability under the distribution really sampled from, in nats; 0 where masked


def is_end(tokens: Tensor, ends: Ends) -> Tensor:
    """Where a text ends. Shapes: (…) ids -> (…) bool."""
    if isinstance(ends, int):
        return tokens == ends
    found = tokens == ends[0]
    for end in ends[1:]:
        found |= tokens == end
    return found


def mask_through_eos(tokens_BT: Tensor, ends: Ends) -> Tensor:
    """True up to and including the first end-of-sequence token of each row.

    Shapes: (B, T) -> (B, T) bool. A row without end of sequence is True throughout (it was truncated).
    """
    is_eos_BT = is_end(tokens_BT, ends)
    ended_before_BT = is_eos_BT.cumsum(dim=1) - is_eos_BT.long()
    return ended_before_BT == 0


def truncated_rows(tokens_BT: Tensor, mask_BT: Tensor, ends: Ends) -> Tensor:
    """True for rows whose unmasked part holds no end of sequence: they hit the length limit and have no terminal state.

    Shapes: (B, T), (B, T) -> (B,) bool.
    """
    return ~(is_end(tokens_BT, ends) & mask_BT).any(dim=1)


class NotFiniteError(ValueError):
    """A number is nan or infinite: training has blown up, or a model is damaged. Its second line says what to do."""


def check_distribution(log_prob: Tensor) -> None:
    """Log-probabilities of what a model has written are numbers. Raises NotFiniteError if not.

    One look at a whole rollout: weights that have blown up show here before any loss is seen.
    """
    if log_prob.isnan().any():
        raise NotFiniteError(
            "the distribution that a model writes from is nan\n"
            "its weights have blown up: lower the learning rate of the stage that made it"
        )
