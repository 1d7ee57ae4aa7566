"""What an update has to wait for: its numbers, once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kd_core.train.state import OptimizerSettings, TrainState, fetched
from tests.kd_core.waits import Waits

Make = Callable[..., Any]


def test_numbers_are_fetched_as_they_are() -> None:
    seen = {
        "loss": [torch.tensor(0.1), torch.tensor(1 / 3, dtype=torch.float64, requires_grad=True)],
        "tokens": [torch.tensor([True, True, False]).sum()],
        "half": [torch.tensor(0.1, dtype=torch.bfloat16)],
        "none": [],
    }
    numbers = fetched(seen)
    assert numbers == {"loss": [float(torch.tensor(0.1)), 1 / 3], "tokens": [2.0], "half": [0.10009765625], "none": []}


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_an_update_reads_its_numbers_at_once(make_t5: Make, max_grad_norm: float) -> None:
    settings = OptimizerSettings(max_grad_norm=max_grad_norm)
    state = TrainState.start(make_t5(), settings)
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(p.numel() for p in state.model.parameters())
    with Waits() as waits:
        shown = state.apply(settings, 10, {"loss": [torch.tensor(2.0), torch.tensor(0.5)]})
    assert waits.count == 1, "one by one, each would be waited for"
    assert shown == {"loss": [2.0, 0.5], "grad_norm": [pytest.approx(count**0.5)]}
