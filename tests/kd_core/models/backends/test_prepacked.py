"""Weights laid out for decoding multiply like the stock layers, and only while they stand in for them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from kd_core.models.backends import prepacked
from kd_core.models.backends.prepacked import gelu_product, prepacked_layers, prepacked_product, standing_in
from kd_core.models.gpt_neo import unpadded_states
from kd_core.models.policy import decode, encode, head_of, start_tokens, step_decoder, step_head
from tests.kd_core.models.backends.families import ragged, tiny

HALF = torch.bfloat16
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
KNOWN = [dtype for dtype in (torch.float32, HALF) if torch.backends.mkldnn.is_available() and prepacked._known(dtype)]


@needs_onednn
@pytest.mark.parametrize("dtype", KNOWN)
@pytest.mark.parametrize("biased", [True, False])
def test_products_are_those_of_the_stock_layer(dtype: torch.dtype, biased: bool) -> None:
    layer = nn.Linear(256, 300, bias=biased).to(dtype)
    for rows in ((1,), (7,), (40,), (3, 5)):
        x = torch.randn(*rows, 256).to(dtype)
        product = prepacked_product(layer.weight, layer.bias)
        assert product is not None
        within = 1e-5 if dtype == torch.float32 else 2e-2
        with torch.no_grad():
            torch.testing.assert_close(product(x), layer(x), atol=within, rtol=within)


@pytest.mark.skipif(HALF not in KNOWN, reason="this processor does not multiply bfloat16")
def test_under_autocast_they_are_in_its_precision() -> None:
    layer, x = nn.Linear(256, 300), torch.randn(4, 256)
    with torch.autocast("cpu", HALF), torch.no_grad():
        product = prepacked_product(layer.weight, layer.bias)
        assert product is not None
        assert product(x).dtype == HALF
        torch.testing.assert_close(product(x), layer(x), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(300, 256, dtype=torch.float64),
        torch.zeros(300, 256, dtype=torch.float16),
        torch.zeros(8, 8),
        torch.zeros(300, 256, device="meta"),
    ],
    ids=["float64", "float16", "small", "another device"],
)
def test_what_gains_nothing_is_left_alone(weight: torch.Tensor) -> None:
    assert prepacked_product(weight, None) is None


@needs_onednn
def test_layers_are_replaced_within_and_learn_in_between() -> None:
    model = nn.Sequential(nn.Linear(256, 300), nn.Tanh(), nn.Linear(300, 256))
    products, x = prepacked_layers(model), torch.randn(2, 256)
    assert set(products) == {model[0], model[2]}
    with torch.no_grad():
        before = model(x)
        for weight in model.parameters():
            weight.zero_()
        with standing_in(products):
            torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)  # the weights that were laid out
        assert not model(x).any()
    assert model(x).requires_grad


def test_a_layer_that_somebody_else_has_wrapped_is_left_alone() -> None:
    layer = nn.Linear(256, 300)
    layer.forward = lambda x: F.linear(x, layer.weight)  # type: ignore[method-assign]
    assert prepacked_layers(nn.Sequential(layer)) == {}


@needs_onednn
@pytest.mark.parametrize("dtype", KNOWN)
def test_steps_and_their_head_use_them(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(
        vocab_size=3000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    model: Any = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    prompts, responses = ragged((5, 1, 9), 1), ragged((4, 4, 4), 2)
    with torch.no_grad():
        memory = encode(model, *prompts)
        inputs = torch.cat([start_tokens(model, memory)[:, None], responses[0][:, :-1]], dim=1)
        hidden, layout = decode(model, memory, inputs, responses[1])
        head, steps = step_head(model), step_decoder(model, memory, 4)
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted := Counted())
        logits = torch.stack([head.logits(steps.step(token)) for token in inputs.unbind(dim=1)], dim=1)
    assert counted.calls == 4 * (2 * 5 + 1)  # q, o, gate, up and down of each layer, and the head; k and v are small
    within = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(layout.pack(logits), head_of(model).logits(hidden), atol=within, rtol=within)


@pytest.mark.skipif(HALF not in KNOWN, reason="this processor does not multiply bfloat16")
def test_a_layer_and_its_gelu_are_one_product_where_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(64, 256), torch.randn(3, 5, 64)
    exact = F.gelu(layer(x), approximate="tanh")
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted := Counted())
    with torch.autocast("cpu", HALF):
        assert gelu_product(x, layer) is None  # its gradient is wanted
        layer.requires_grad_(False)
        fused = gelu_product(x, layer)
        assert gelu_product(x.clone().requires_grad_(), layer) is None
        layer.bias.requires_grad_(True)
        assert gelu_product(x, layer) is None
    assert counted.calls == 1
    assert gelu_product(x, layer) is None  # in float32 nothing is done
    assert fused is not None
    assert fused.dtype == HALF
    torch.testing.assert_close(fused.float(), exact, atol=2e-2, rtol=2e-2)


@pytest.mark.skipif(HALF not in KNOWN, reason="this processor does not multiply bfloat16")
def test_gpt_neos_frozen_blocks_are_made_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny("gpt_neo").float().requires_grad_(False), torch.tensor([[5, 6, 7]])
    with torch.autocast("cpu", HALF):
        model.config.activation_function = "gelu"  # not the one that oneDNN is told of
        stock = unpadded_states(model, ids, 1)
        model.config.activation_function = "gelu_new"
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted := Counted())
        fused = unpadded_states(model, ids, 1)
    assert counted.calls == 1
    torch.testing.assert_close(fused, stock, atol=5e-2, rtol=5e-2)


class Counted:
    """oneDNN's product, counting."""

    def __init__(self) -> None:
        self.calls, self._product = 0, torch.ops.mkldnn._linear_pointwise

    def __call__(self, *arguments: Any) -> torch.Tensor:
        self.calls += 1
        out: torch.Tensor = self._product(*arguments)
        return out


@pytest.mark.parametrize("name", ["t5", "gpt_neo"])
def test_models_of_our_own_keep_their_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "MIN_SIZE", 1)
    assert step_head(tiny(name)).product is None
