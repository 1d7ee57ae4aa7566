"""The count of waits sees what is fetched, on a CPU too, and leaves tensors as they were."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kd_core.waits import Waits


@pytest.mark.parametrize(
    "fetch",
    [
        lambda x: x.item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        np.asarray,
        bool,
        torch.nonzero,
    ],
)
def test_what_is_fetched_counts(fetch: Callable[[Tensor], object]) -> None:
    one = torch.ones(1)
    with Waits() as waits:
        fetch(one)
    assert waits.count == 1


def test_what_stays_on_the_device_does_not_and_afterwards_nothing_counts() -> None:
    methods = [getattr(Tensor, name) for name in ("tolist", "cpu", "numpy")]
    with Waits() as waits:
        kept = (torch.ones(3).cumsum(dim=0) + 1).index_select(0, torch.tensor([0]))
    assert kept.tolist() == [2.0]
    assert waits.count == 0
    assert [getattr(Tensor, name) for name in ("tolist", "cpu", "numpy")] == methods
