"""The order in which training sees the rows of a data set.

Shape legend: R rows of the data set, B rows of a batch.

The order is a function of (seed, epoch) alone, so a resumed run needs no saved iterator: it counts updates and goes on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_core.models.token_rows import TokenRows

POOL_BATCHES = 16  # rows are sorted by length within a pool this large, so that a batch pads little


@dataclass(frozen=True)
class Sources:
    """The same inputs as the student reads them (raw) and as the teacher does (prompted)."""

    student: TokenRows
    teacher: TokenRows
    text: TokenRows | None = None  # the data set's own outputs for them; only validation looks at these

    def tokens(self, written: int | Tensor, index_B: Tensor | slice = slice(None)) -> Tensor:
        """What both models pass over for each row, where so many tokens are written for it. Shapes: (B,) -> (B,)."""
        return self.student.lengths[index_B] + self.teacher.lengths[index_B] + 2 * written


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """An optimizer update is `micro_batches` micro-batches; the loss is averaged over all their tokens together."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    micro_batch_tokens: int = 2048  # source tokens of a micro-batch at most
    micro_batch_rows: int = 64  # and rows at most
    micro_batches: int = 4  # per optimizer update

    def __post_init__(self) -> None:
        for name in ("micro_batch_tokens", "micro_batch_rows", "micro_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def epoch_updates(lengths: NDArray[np.int64], settings: BatchSettings, seed: int, epoch: int) -> list[list[Tensor]]:
    """One pass over the data: a list of updates, each a list of micro-batches, each the row numbers of a batch.

    Shapes: (R,) -> updates x micro-batches x (B,). Every row comes once. The last update of an epoch may be smaller.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    pool_rows = POOL_BATCHES * settings.micro_batch_rows
    micro: list[Tensor] = []
    for start in range(0, len(order), pool_rows):
        pool = order[start : start + pool_rows]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        micro.extend(_cut(pool, lengths, settings))
    shuffled = [micro[i] for i in rng.permutation(len(micro))]
    return [shuffled[i : i + settings.micro_batches] for i in range(0, len(shuffled), settings.micro_batches)]


def updates(lengths: NDArray[np.int64], settings: BatchSettings, seed: int, start: int = 0) -> Iterator[list[Tensor]]:
    """Updates without end, epoch after epoch, from number `start` on. Raises ValueError for an empty data set."""
    if len(lengths) == 0:
        raise ValueError("there are no rows to train on")
    epoch, done = 0, 0
    while True:
        this_epoch = epoch_updates(lengths, settings, seed, epoch)
        yield from this_epoch[max(0, start - done) :]
        done += len(this_epoch)
        epoch += 1


def _cut(pool: NDArray[np.int64], lengths: NDArray[np.int64], settings: BatchSettings) -> Iterator[Tensor]:
    rows: list[int] = []
    tokens = 0
    for row in pool.tolist():
        length = int(lengths[row])
        if rows and (len(rows) == settings.micro_batch_rows or tokens + length > settings.micro_batch_tokens):
            yield torch.tensor(rows)
            rows, tokens = [], 0
        rows.append(row)
        tokens += length
    yield torch.tensor(rows)
