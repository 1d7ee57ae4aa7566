"""Tokenised rows and the order in which training sees them.

Shape legend: R rows of the data set, B rows of a batch, S padded length.

The order is a function of (seed, epoch) alone, so a resumed run needs no saved iterator: it counts updates and goes on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_core.lengths import require_length

POOL_BATCHES = 16  # rows are sorted by length within a pool this large, so that a batch pads little


@dataclass(frozen=True)
class TokenRows:
    """Ragged token ids, stored flat."""

    flat: Tensor  # all ids, int32
    offset_R1: Tensor  # row r is flat[offset[r] : offset[r + 1]]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "TokenRows":
        """From lists of ids."""
        lengths = torch.tensor([0, *map(len, rows)])
        return cls(torch.tensor([i for row in rows for i in row], dtype=torch.int32), lengths.cumsum(0))

    @classmethod
    def encode(cls, tokenizer: Any, texts: Sequence[str], max_tokens: int, *, ends: bool = True) -> "TokenRows":
        """Tokenise texts; a row longer than `max_tokens` is cut and keeps its end of sequence. See `token_lists`."""
        require_length("max_source_tokens", max_tokens)
        return cls.of(token_lists(tokenizer, texts, max_tokens, ends=ends))

    @classmethod
    def targets(cls, tokenizer: Any, texts: Sequence[str], max_tokens: int) -> "TokenRows":
        """Texts as a model is to write them: nothing that a tokenizer puts in front, and the end of sequence."""
        require_length("max_target_tokens", max_tokens)
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return cls.of([[*row[: max_tokens - 1], tokenizer.eos_token_id] for row in rows])

    def __len__(self) -> int:
        return self.offset_R1.numel() - 1

    @property
    def lengths(self) -> Tensor:
        """(R,) tokens of each row."""
        return self.offset_R1.diff()

    def batch(self, index_B: Tensor, pad_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Right-padded rows. Shapes: (B,) row numbers -> (B, S) ids, (B, S) mask, on `device`."""
        start_B, length_B = self.offset_R1[index_B], self.lengths[index_B]
        column_S = torch.arange(int(length_B.max()))
        mask_BS = column_S[None] < length_B[:, None]
        position_BS = (start_B[:, None] + column_S[None]).clamp(max=self.flat.numel() - 1)
        ids_BS = torch.where(mask_BS, self.flat[position_BS].long(), pad_id)
        return ids_BS.to(device, non_blocking=True), mask_BS.to(device, non_blocking=True)


def token_lists(
    tokenizer: Any, texts: Sequence[str], max_tokens: int | None = None, *, ends: bool = True
) -> list[list[int]]:
    """The ids of each text, at most `max_tokens` of them.

    T5's tokenizers append an end of sequence themselves, GPT-2's do not: every row `ends` in one, or none does.
    """
    cut = max_tokens is not None
    rows = tokenizer(list(texts), truncation=cut, max_length=max_tokens, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    if not ends:
        return [row[:-1] if row[-1:] == [end] else row for row in rows]
    room = None if max_tokens is None else max_tokens - 1
    return [row if row[-1:] == [end] else [*row[:room], end] for row in rows]


@dataclass(frozen=True)
class Sources:
    """The same inputs as the student reads them (raw) and as the teacher does (prompted)."""

    student: TokenRows
    teacher: TokenRows


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
