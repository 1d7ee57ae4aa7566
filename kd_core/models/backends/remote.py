"""A causal model that runs elsewhere: what it makes of given tokens, and what it writes. It has no weights here.

Shape legend: B rows, T target positions, U = T + 1 with the state after the last, K tokens told of a state.

All that is known of it are log-probabilities. They are logits with one constant of each state taken off, which is why
LLMR can be taught by them: under `centre: log_probs` they are the q-values themselves, and in a gain less its baseline
V(s_t) the constants cancel, whichever they are. Divergences take the K likeliest tokens of each state, with the mass of
all others as one more outcome.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from kd_core.models.backends.probe import Backend


@dataclass(frozen=True)
class Scored:
    """What it makes of the T tokens after a prompt, in nats."""

    log_probs: Sequence[float]  # log p(y_t | s_t), T of them
    largest: Sequence[float]  # max_y log p(y | s_t), T + 1 of them: of the state after the last token too


@dataclass(frozen=True)
class Likeliest:
    """What it says of the T states before a target's tokens: the K likeliest tokens of each, and their log p in nats.

    A place that is empty, of a row of its embedding that stands for no token, has log p -inf and the first token's id.
    """

    ids_TK: Tensor
    log_prob_TK: Tensor


@dataclass(frozen=True)
class Written:
    """What it wrote after a prompt. log_prob: the sum over its tokens, in nats; None where it does not say."""

    token_ids: Sequence[int]  # the end included, where it has one
    truncated: bool
    log_prob: float | None = None


@dataclass(frozen=True)
class Writing:
    """How it writes: greedily at temperature 0. seeds: one a row, of its samples."""

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0  # 0 = the whole vocabulary
    top_p: float = 1.0
    seeds: Sequence[int] | None = None


@dataclass
class RemoteConfig:
    """The part of a model's config that is asked for here."""

    eos_token_id: int | list[int]
    pad_token_id: int
    is_encoder_decoder: bool = False
    model_type: str = "remote"


class RemoteModel(ABC):
    """Stands where a model does, for those who only judge by it or let it write."""

    config: RemoteConfig
    generation_config: RemoteConfig  # the same
    device = torch.device("cpu")  # where rows are made ready for it
    dtype = torch.float32  # in which its numbers are computed with

    @abstractmethod
    def score(self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Scored]:
        """What it makes of each target after its prompt."""

    @abstractmethod
    def likeliest(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], top_k: int
    ) -> list[Likeliest]:
        """The `top_k` likeliest tokens (all, where there are fewer) at each position of a target after its prompt."""

    @abstractmethod
    def write(self, prompts: Sequence[Sequence[int]], how: Writing) -> list[Written]:
        """What it writes after each prompt."""


@dataclass(frozen=True)
class RemoteMemory:
    """What a remote model is to read: the ids of each prompt."""

    prompts: list[list[int]] = field(default_factory=list)

    def detach(self) -> "RemoteMemory":
        """Itself: there is no gradient."""
        return self

    def repeated(self, times: int) -> "RemoteMemory":
        """Each prompt `times` over, one after another."""
        return RemoteMemory([each for each in self.prompts for _ in range(times)])


def encode(_: RemoteModel, ids_BS: Tensor, mask_BS: Tensor) -> RemoteMemory:
    """Nothing is read yet. Shapes: (B, S) ids, (B, S) bool -> B prompts."""
    return RemoteMemory(ragged(ids_BS, mask_BS))


def ragged(ids_BT: Tensor, mask_BT: Tensor) -> list[list[int]]:
    """Rows without their padding. Shapes: (B, T), (B, T) -> B lists."""
    return [ids_T[mask_T].tolist() for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)]


def remote_scores(model: RemoteModel, memory: Any, tokens_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each token, and the largest log p of each state.

    Shapes: a `RemoteMemory` of B prompts, (B, T) tokens, (B, T) mask -> (B, T + 1) twice, 0 where there is nothing.
    The state after a row's last token is where its mask ends.
    """
    shape = (tokens_BT.shape[0], tokens_BT.shape[1] + 1)
    log_prob_BU, largest_BU = torch.zeros((2, *shape), dtype=model.dtype)
    for b, scored in enumerate(model.score(memory.prompts, ragged(tokens_BT, mask_BT))):
        for x_U, numbers in ((log_prob_BU[b], scored.log_probs), (largest_BU[b], scored.largest)):
            x_U[: len(numbers)] = torch.tensor(numbers, dtype=model.dtype)
    return log_prob_BU.to(tokens_BT.device), largest_BU.to(tokens_BT.device)


def remote_nll(model: RemoteModel, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> float:
    """Mean -log p of the target tokens, in nats."""
    scored = model.score(prompts, targets)
    return -sum(sum(each.log_probs) for each in scored) / sum(len(each.log_probs) for each in scored)


def _no_weights(*_: Any) -> NoReturn:
    raise ValueError("the model is behind a server: it has no states to compute with\nname a model that is here")


REMOTE = Backend("remote", encode, _no_weights, _no_weights)
