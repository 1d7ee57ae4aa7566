"""Tiny models of the real classes, in float64, so that oracles are exact."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks import reference_llmr


def tiny_t5(
    vocab_size: int = 11, *, feed_forward: str = "relu", seed: int = 0, sharpness: float = 1.0, **more: Any
) -> Any:
    """A T5 of a few thousand weights, float64, with a head of its own so that its outputs vary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=vocab_size,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            feed_forward_proj=feed_forward,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            **more,
        )
        model = T5ForConditionalGeneration(config).double().eval()
        model.lm_head.weight = torch.nn.Parameter(torch.randn(vocab_size, 16, dtype=torch.float64) * sharpness)
    return model


@pytest.fixture
def exact_layer_norm() -> Iterator[None]:
    """The stock model in full float64."""
    with reference_llmr.exact_layer_norm():
        yield


@pytest.fixture
def make_t5() -> Callable[..., Any]:
    return tiny_t5


@pytest.fixture(autouse=True)
def no_grad_left_off() -> Iterator[None]:
    """A test that leaves gradients disabled would hide failures of the next."""
    yield
    assert torch.is_grad_enabled()
