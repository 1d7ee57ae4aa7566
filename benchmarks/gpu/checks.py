"""Before any clock: ours gives stock transformers' numbers on this device, at a small shape."""

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

from benchmarks.gpu import cases
from benchmarks.gpu.cases import Case, Lengths
from benchmarks.reference_llmr import exact_layer_norm
from kd_core.rollout.sampling import SamplingSettings, draw

LENGTHS = Lengths(rows=6, median=6, prompt=16, response=12)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 0.1}  # of the mean size of a number


def values(config: Any, device: torch.device, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """How far scores and gradients are from stock's, beside their mean size; AssertionError where that is too much.

    In float64 the sampled tokens too, drawn by the same random numbers; in half precision, stock rounds as well.
    """
    case = Case.of(config, LENGTHS, device, torch.float64)
    case = replace(case, **{name: copy.deepcopy(getattr(case, name)).to(dtype) for name in ("teacher", "student")})
    found = {}
    with exact_layer_norm() if dtype == torch.float64 else nullcontext():
        if dtype == torch.float64:
            check_tokens(case)
        for what in ("scores", "policy_gradient", "divergence"):
            pair = (getattr(cases, f"{side}_{what}")(case) for side in ("our", "stock"))
            distances = [_distance(*each) for each in zip(*pair, strict=True)]
            found[what] = float(torch.tensor(distances, dtype=torch.float64).max())  # nan where any is
    about = {"benchmark": "gpu", "what": "values", "precision": str(dtype).removeprefix("torch.")}
    yield {**about, "kind": config.model_type, "distance": found, "tolerance": TOLERANCE[dtype]}
    assert all(distance <= TOLERANCE[dtype] for distance in found.values()), found


def _distance(ours: Tensor, stock: Tensor) -> float:
    size = stock.double().abs().mean().clamp(min=1e-12)
    return float((ours.double() - stock.double()).abs().mean() / size)


def check_tokens(case: Case) -> None:
    """Raise AssertionError unless samples, by graphs too, are those of `generate` with the same random numbers."""
    ours, stock = cases.our_sample(case), cases.stock_sample(case, processors=[_SameNumbers(case)])
    stock = F.pad(stock, (0, case.tokens_BT.shape[1] - stock.shape[1]))[:, : ours.tokens_BT.shape[1]]
    assert torch.equal(ours.tokens_BT * ours.mask_BT, stock * ours.mask_BT), "tokens differ"
    assert torch.equal(ours.tokens_BT, cases.our_sample_by_graphs(case).tokens_BT), "tokens by graphs differ"


class _SameNumbers(LogitsProcessor):
    """Makes `generate` draw by the uniform numbers that our samples are drawn by: one token is left to choose from."""

    def __init__(self, case: Case) -> None:
        shape = case.tokens_BT.shape[0], case.tokens_BT.shape[1]
        uniform_BT = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        self.uniform_TB = iter(uniform_BT.T.to(case.tokens_BT.device))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token_B, _ = draw(scores, next(self.uniform_TB), SamplingSettings())
        return torch.full_like(scores, -math.inf).scatter_(1, token_B[:, None], 0.0)
