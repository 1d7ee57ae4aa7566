import torch

from kd_core.models.policy import shift_right


def test_shift_right_never_wraps_the_last_token_to_the_front() -> None:
    assert shift_right(torch.tensor([[5, 6, 7]]), 0).tolist() == [[0, 5, 6]]
