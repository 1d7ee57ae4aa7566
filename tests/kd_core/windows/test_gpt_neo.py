"""The one-query last block and the trunk against the stock GPT-Neo, values and gradients, in float64."""

from typing import Any

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from kd_core.windows.last_block import last_hidden, next_hidden, set_trainable, trunk

B, H, V = 5, 9, 23


def tiny_gpt_neo(*, layers: int = 3, window: int = 256, seed: int = 0) -> Any:
    """Random in every weight, the norms' too: ones and zeros there would hide mistakes."""
    types: list[Any] = [[["global", "local"], layers // 2]]
    if layers % 2:
        types.append([["global"], 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GPTNeoConfig(
            vocab_size=V,
            hidden_size=16,
            num_layers=layers,
            num_heads=4,
            attention_types=types,
            max_position_embeddings=32,
            window_size=window,
            attention_dropout=0.0,
            resid_dropout=0.0,
            embed_dropout=0.0,
        )
        model = GPTNeoForCausalLM(config).double().eval()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture
def exact_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock attention multiplies in float32; in float64 it can be compared to the last digits."""
    stock = torch.Tensor.to

    def to(self: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if arguments == (torch.float32,) and self.dtype == torch.float64:
            return self
        return stock(self, *arguments, **named)

    monkeypatch.setattr(torch.Tensor, "to", to)


def windows(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (B, H), generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("exact_attention")
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("window", [256, 4])
def test_the_last_position_is_that_of_the_stock_model(layers: int, window: int) -> None:
    model, ids = tiny_gpt_neo(layers=layers, window=window), windows()
    with torch.no_grad():
        ours = next_hidden(model, ids) @ model.lm_head.weight.T
        stock = model(ids).logits[:, -1]
    torch.testing.assert_close(ours, stock, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("exact_attention")
@pytest.mark.parametrize("window", [256, 4])
def test_gradients_are_those_of_the_stock_model(window: int) -> None:
    model, ids = tiny_gpt_neo(layers=2, window=window), windows()
    trained = set_trainable(model, "last_block")
    weight = torch.randn(B, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    below = trunk(model, ids)
    ours = torch.autograd.grad((last_hidden(model, below) @ model.lm_head.weight.T * weight).sum(), trained)
    stock = torch.autograd.grad((model(ids).logits[:, -1] * weight).sum(), trained)
    torch.testing.assert_close(ours, stock, atol=1e-11, rtol=1e-11)
    assert all(gradient.abs().max() > 1e-3 for gradient in ours), "a parameter that is not trained was compared"


def test_the_freeze_policy() -> None:
    model = tiny_gpt_neo()
    everything = set_trainable(model, "all")
    assert len(everything) == len(list(model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    trained = {names[id(p)] for p in set_trainable(model, "last_block")}
    assert all(name.startswith(("transformer.h.2.", "transformer.ln_f.")) for name in trained)
    assert {name for name in names.values() if name.startswith(("transformer.h.2.", "transformer.ln_f."))} == trained
    with pytest.raises(ValueError, match="trainable must be all or last_block, got 'head'"):
        set_trainable(model, "head")  # type: ignore[arg-type]


def test_a_context_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="a context of 33 tokens is longer than the model's 32 positions"):
        next_hidden(tiny_gpt_neo(), torch.zeros((1, 33), dtype=torch.long))
