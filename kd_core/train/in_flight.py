"""Rollouts that more than one update learns from: what a checkpoint has of them, and whose they are of several ranks.

Shape legend: B rollouts, T target positions.

A rank holds its rows of each micro-batch, by the micro-batch's number. A checkpoint holds whole micro-batches, as one
process has them; ranks that go on from it, however many, take their rows again as they take them of a batch.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.train.ranks import Ranks

P = TypeVar("P")


def pack(parts: Mapping[int, object]) -> dict[str, Tensor]:
    """Dataclasses of tensors, one a micro-batch: each tensor under its micro-batch's number and its name."""
    return _named({i: {name: x for name, x in vars(part).items() if x is not None} for i, part in parts.items()})


def unpack(kind: type[P], in_flight: Mapping[str, Tensor]) -> dict[int, P]:
    """What `pack` was given, parts of one `kind`, in their order."""
    return {i: kind(**part) for i, part in _parts(in_flight).items()}


def blank(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same rows of a data set with nothing that counts: no token, no reward. For a rank that keeps step by them."""
    return {name: tensor if name == "source_B" else torch.zeros_like(tensor) for name, tensor in part.items()}


def whole(in_flight: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """What is in flight on all ranks together, as one process has it; all of them call it."""
    if ranks.size == 1:
        return dict(in_flight)
    of_rank = [_parts(each) for each in ranks.gather({name: tensor.cpu() for name, tensor in in_flight.items()})]
    joined = {}
    for micro in sorted({micro for parts in of_rank for micro in parts}):
        slices = [of_rank[rank][micro] for rank in ranks.in_order(micro) if micro in of_rank[rank]]
        slices = [each for each in slices if each["mask_BT"].any()]  # the others only keep step
        joined[micro] = {name: _stacked([each[name] for each in slices]) for name in slices[0]}
    return _named(joined)


def dealt(in_flight: Mapping[str, Tensor], ranks: Ranks, tokens_R: Tensor) -> dict[str, Tensor]:
    """This rank's of what is in flight, as it was before `whole`, were there as many ranks then.

    `tokens_R`: what each row of the data set costs, by which batches were shared out.
    """
    if ranks.size == 1:
        return dict(in_flight)
    found = {}
    for micro, part in _parts(in_flight).items():
        source_B, times_B = part["source_B"].unique_consecutive(return_counts=True)
        mine = ranks.mine(torch.arange(len(source_B)), micro, tokens_R[source_B.cpu()])
        if len(mine):
            end_B = times_B.cumsum(0).tolist()
            first, last = int(mine.rows_B[0]), int(mine.rows_B[-1])
            rows = slice(end_B[first - 1] if first else 0, end_B[last])
            width = int(part["mask_BT"][rows].any(dim=0).sum())  # that of its longest
            own = {name: x[rows, :width] if x.dim() == 2 else x[rows] for name, x in part.items()}
            found[micro] = own if mine.counts else blank(own)
    return _named(found)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """(B,) or (B, T) of several, the shorter padded with zeros, one below the other."""
    if parts[0].dim() < 2:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])


def _named(parts: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{i}.{name}": tensor for i, part in parts.items() for name, tensor in part.items()}


def _parts(in_flight: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The tensors of each part by name, in the parts' order."""
    parts: dict[int, dict[str, Tensor]] = {}
    for key, tensor in in_flight.items():
        number, name = key.split(".")
        parts.setdefault(int(number), {})[name] = tensor
    return {number: parts[number] for number in sorted(parts)}
