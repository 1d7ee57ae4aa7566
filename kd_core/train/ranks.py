"""Training by several processes, data parallel: every rank has the same weights and its rows of each batch.

Shape legend: B rows of a batch.

All ranks draw the same batches from the same seeds, and each computes with the rows that are its own. What a loss is
divided by is counted over the whole batch, so that gradients are summed over ranks and not averaged: the update is that
of one process, but for the order of a sum. The processes are those of `torch.distributed`'s default group, whoever has
started them; where there is none, there is one rank, and nothing here does anything.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from kd_core.models.backends.sharded import any_is_sharded

T = TypeVar("T")
R = TypeVar("R")
BUCKET = 2**24  # numbers that are summed at once: 64 MiB of float32 beside the gradients


@dataclass(frozen=True)
class Mine:
    """The rows of a batch that are this rank's."""

    rows_B: Tensor
    first: int  # place in the batch of the first of them
    of: int  # rows of the whole batch
    counts: bool = True  # False: there is none left for this rank, which keeps step by one of another's

    def __len__(self) -> int:
        return len(self.rows_B)

    def within(self, times: int = 1) -> tuple[int, int]:
        """Place of the first, and size of the batch, where each row comes so many times."""
        return self.first * times, self.of * times


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1
    in_step: bool = False  # a model is sharded: all run it equally often

    @classmethod
    def here(cls) -> "Ranks":
        """Of `torch.distributed`'s default group, or alone."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size(), any_is_sharded())
        return cls()

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def mine(self, rows_B: Tensor, micro_batch: int = 0, tokens_B: Tensor | None = None) -> Mine:
        """This rank's rows of a batch, which are neighbours; those of an update's micro-batches go round.

        Shared out by number, or by the tokens that each row costs, so that the rank with most has as few as can be.
        Where there are fewer rows than ranks it is none, or, in step, one that does not count.
        """
        place = (self.rank - micro_batch) % self.size
        first, end = (len(rows_B) * each // self.size for each in (place, place + 1))
        if tokens_B is not None and 1 < self.size < len(rows_B):
            first, end = ([0, *ends_of_parts(tokens_B.tolist(), self.size)][each] for each in (place, place + 1))
        if self.in_step and first == end:
            return Mine(rows_B[:1], 0, len(rows_B), counts=False)
        return Mine(rows_B[first:end], first, len(rows_B))

    def in_order(self, micro_batch: int) -> list[int]:
        """The ranks, in the order of their rows of a micro-batch."""
        return [(place + micro_batch) % self.size for place in range(self.size)]

    def gather(self, own: T) -> list[T]:
        """What each rank has, in their order. It travels pickled: small things, or tensors that are on the CPU."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, own)
        return found

    def agreed(self, own: T) -> T:
        """What the first rank has."""
        if self.size == 1:
            return own
        found = [own]
        distributed.broadcast_object_list(found, src=0)
        return found[0]

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`function` of every item, in their order, each computed by one rank; the last by several, to keep step."""
        items = list(items)
        rounds = range(self.rank, -(-len(items) // self.size) * self.size if self.in_step else len(items), self.size)
        found = self.gather([function(items[min(number, len(items) - 1)]) for number in rounds])
        return [found[number % self.size][number // self.size] for number in range(len(items))]

    def joined(self, numbers: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """The lists of all ranks, one after another, under each name that any of them has."""
        found = self.gather(numbers)
        names = dict.fromkeys(name for each in found for name in each)
        return {name: [x for each in found for x in each.get(name, ())] for name in names}

    def total(self, own: Tensor) -> Tensor:
        """The sum over ranks, on the tensor's device."""
        if self.size > 1:
            own = own.clone()
            distributed.all_reduce(own)
        return own

    @torch.no_grad()
    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients of all ranks, on each of them. What has none on any rank goes on having none."""
        if self.size == 1:
            return
        has = torch.tensor([x.grad is not None for x in parameters], dtype=torch.uint8)
        distributed.all_reduce(has, distributed.ReduceOp.MAX)
        wanted = [x for x, any_rank in zip(parameters, has.tolist(), strict=True) if any_rank]
        for bucket in _buckets(wanted):
            gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in bucket]
            if len(bucket) == 1 and gradients[0].is_contiguous():  # the largest ones, without a copy
                distributed.all_reduce(gradients[0])
            else:
                flat = torch.cat([gradient.flatten() for gradient in gradients])
                distributed.all_reduce(flat)
                for gradient, summed in zip(gradients, flat.split([x.numel() for x in bucket]), strict=True):
                    gradient.copy_(summed.view_as(gradient))
            for x, gradient in zip(bucket, gradients, strict=True):
                x.grad = gradient

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """One rank after another does what is inside."""
        for _ in range(self.rank):
            self.barrier()
        try:
            yield
        finally:  # the others have theirs, and may fail alike
            for _ in range(self.size - self.rank):
                self.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first rank does what is inside before the others do: what it writes, they find."""
        if not self.is_first:
            self.barrier()
        yield
        if self.is_first:
            self.barrier()

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Ranks()


def ends_of_parts(costs: Sequence[int], parts: int) -> list[int]:
    """Where neighbouring parts of rows end of which the dearest costs as little as can be.

    Each has a row at least. Costs are 1 or more; there are no fewer rows than parts.
    """
    up_to = [0, *accumulate(costs)]

    def ends(most: int) -> list[int]:
        """Of parts that are each as long as such a cost allows, and leave a row for every part behind."""
        found = [0]
        for behind in reversed(range(parts)):
            found.append(min(bisect_right(up_to, up_to[found[-1]] + most) - 1, len(costs) - behind))
        return found[1:]

    enough = bisect_left(range(up_to[-1]), True, lo=max(costs), key=lambda most: ends(most)[-1] == len(costs))
    return ends(enough)


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parts of a list, each of one dtype and, unless one tensor is larger, of `BUCKET` numbers at most."""
    bucket: list[Tensor] = []
    size = 0
    for x in parameters:
        if bucket and (x.dtype != bucket[0].dtype or size + x.numel() > BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(x)
        size += x.numel()
    if bucket:
        yield bucket
