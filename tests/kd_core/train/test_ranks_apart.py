"""What ranks do for one another besides training: gradients summed in buckets, what one does first or all in turn."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from kd_core.train import ranks as module
from kd_core.train.in_flight import pack, unpack
from kd_core.train.ranks import Ranks
from tests.kd_core.together import together

if TYPE_CHECKING:
    from pathlib import Path

Reduced = list[tuple[torch.dtype, int]]


def summed() -> tuple[list[torch.Tensor | None], Reduced]:
    """The gradients of all ranks, of what has one on each, on one or on none; and what was summed at once."""
    ranks, reduced, all_reduce = Ranks.here(), Reduced(), distributed.all_reduce
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (2,), (3,), (20,), (4, 5), (7,))]
    parameters.insert(2, nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))
    matrix, vector, half, of_one, large, columns, _ = parameters
    for x in (vector, half, large):
        x.grad = torch.full_like(x, ranks.rank + 1)
    matrix.grad = (torch.arange(12.0).view(4, 3) * (ranks.rank + 1)).T  # not in the order of memory
    columns.grad = torch.zeros(4, 10)[:, ::2]  # nor without gaps
    columns.grad.copy_(torch.arange(20.0).view(4, 5) * (ranks.rank + 1))
    if ranks.rank == 1:
        of_one.grad = torch.ones(3)

    def noted(x: torch.Tensor, *how: Any) -> None:
        reduced.append((x.dtype, x.numel()))
        all_reduce(x, *how)

    module.BUCKET = 16
    distributed.all_reduce = noted  # type: ignore[assignment]
    ranks.add_gradients(parameters)
    distributed.all_reduce = all_reduce
    return [x.grad for x in parameters], reduced


def test_gradients_are_summed_a_bucket_at_a_time_and_none_stays_none(tmp_path: Path) -> None:
    """Buckets of 16 numbers of one type; what is larger alone."""
    for grads, reduced in together(summed, 3, tmp_path):
        matrix, vector, half, of_one, large, columns, nothing = grads
        assert torch.equal(matrix, 6 * torch.arange(12.0).view(4, 3).T)  # 1 + 2 + 3 times a rank's
        assert torch.equal(columns, 6 * torch.arange(20.0).view(4, 5))
        assert (vector.tolist(), half.tolist(), large.tolist()) == ([6.0] * 2, [6.0] * 2, [6.0] * 20)
        assert half.dtype == torch.bfloat16
        assert of_one.tolist() == [1.0] * 3
        assert nothing is None
        assert reduced[1:] == [(torch.float32, 14), (torch.bfloat16, 2)] + [(torch.float32, n) for n in (3, 20, 20)]


def met(folder: Path) -> dict[str, Any]:
    """What each rank finds that waits for another, or for all."""
    ranks, order, own, calls = Ranks.here(), folder / "order", torch.ones(2), list[int]()
    with ranks.first_alone():
        found = (folder / "first").exists()
        if ranks.is_first:
            time.sleep(0.3)
            (folder / "first").touch()
    for fails in (False, True):
        with suppress(ZeroDivisionError), ranks.in_turn():
            with order.open("a") as file:
                file.write(f"{ranks.rank}")
            time.sleep(0.1 * (ranks.size - ranks.rank))
            with order.open("a") as file:
                file.write(f"{ranks.rank} ")
            if fails and ranks.rank == 1:
                raise ZeroDivisionError
    in_step = replace(ranks, in_step=True)

    def twice(x: int) -> int:
        calls.append(x)
        return 2 * x

    return {
        "found": found,
        "order": order.read_text(),
        "agreed": ranks.agreed(f"of {ranks.rank}"),
        "total": (ranks.total(own).tolist(), own.tolist()),
        "map": (in_step.map(twice, [1, 2, 3, 4]), len(calls), ranks.map(twice, [5]), len(calls)),
    }


def test_one_goes_first_or_each_in_its_turn_and_a_rank_that_fails_holds_up_nobody(tmp_path: Path) -> None:
    found = together(met, 3, tmp_path, tmp_path)
    assert [each["found"] for each in found] == [False, True, True]
    assert found[2]["order"] == "00 11 22 00 11 22 "
    assert {each["agreed"] for each in found} == {"of 0"}
    assert all(each["total"] == ([3.0, 3.0], [1.0, 1.0]) for each in found), "what is summed stays as it was"
    # in step all compute two of four; otherwise one alone computes the only one
    assert [each["map"] for each in found] == [([2, 4, 6, 8], 2, [10], 3 if rank == 0 else 2) for rank in range(3)]


def test_a_rank_without_rows_keeps_step_by_one_that_does_not_count() -> None:
    parts = [Ranks(rank, 3, in_step=True).mine(torch.tensor([9, 7]), 0) for rank in range(3)]
    assert [(part.rows_B.tolist(), part.counts) for part in parts].count(([9], False)) == 1
    assert [row for part in parts if part.counts for row in part.rows_B.tolist()] == [9, 7]


@dataclass(frozen=True)
class Part:
    """As a loop keeps a micro-batch; `memory` is of the running process alone."""

    source_B: torch.Tensor
    memory: torch.Tensor | None = None


def test_micro_batches_come_out_of_a_file_in_the_order_of_their_numbers() -> None:
    """A file has its tensors by name, and "10." before "2."."""
    parts = {number: Part(torch.tensor([number])) for number in range(12)}
    found = unpack(Part, dict(sorted(pack(parts).items())))
    assert list(found) == list(parts)
    assert all(part.source_B.tolist() == [number] and part.memory is None for number, part in found.items())
