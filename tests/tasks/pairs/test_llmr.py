"""The student as it starts, which `start_kl` holds LLMR to."""

import torch
from transformers import T5ForConditionalGeneration

from tasks.pairs.llmr import frozen_copy
from tests.kd_core.conftest import tiny_t5


def student() -> T5ForConditionalGeneration:
    """Half of it frozen, as an adapter's base is."""
    model: T5ForConditionalGeneration = tiny_t5().float()
    model.encoder.requires_grad_(requires_grad=False)
    return model


def test_what_is_frozen_is_there_once_and_what_is_trained_stays_behind() -> None:
    model = student()
    start = frozen_copy(model, "float32")
    before = {name: parameter.clone() for name, parameter in start.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    for (name, mine), other in zip(start.named_parameters(), model.parameters(), strict=True):
        assert (mine is other) == (not other.requires_grad), name
        assert torch.equal(mine, before[name])
        assert not mine.requires_grad
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_it_is_rounded_as_the_student_will_be() -> None:
    model = student()
    start = frozen_copy(model, "bfloat16_weights")
    dtypes = {
        other.requires_grad: mine.dtype for mine, other in zip(start.parameters(), model.parameters(), strict=True)
    }
    assert dtypes == {True: torch.bfloat16, False: torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
