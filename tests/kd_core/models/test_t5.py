"""The unpadded forward pass and the step decoder against the stock model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MT5Config, MT5ForConditionalGeneration

from kd_core.models.packing import Layout
from kd_core.models.policy import head_of, shift_right
from kd_core.models.t5 import decode, encode
from kd_core.models.t5_steps import StepDecoder

Make = Callable[..., Any]
SOURCE = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0], [4, 4, 4, 0, 0]])
SOURCE_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()
TARGET = torch.tensor([[5, 6, 1, 0], [7, 8, 9, 1], [1, 0, 0, 0]])
TARGET_MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()


def stock_logits(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    out = model(input_ids=SOURCE, attention_mask=SOURCE_MASK.long(), decoder_input_ids=inputs, use_cache=False)
    logits: torch.Tensor = out.logits
    return logits


@pytest.mark.usefixtures("exact_layer_norm")
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False], ids=["t5", "v1.1"])
def test_logits_and_gradients_equal_the_stock_model(make_t5: Make, feed_forward: str, tied: bool) -> None:
    model = make_t5(feed_forward=feed_forward, tie_word_embeddings=tied)
    inputs = shift_right(TARGET, 0)
    memory = encode(model, SOURCE, SOURCE_MASK)
    hidden, layout = decode(model, memory, inputs, TARGET_MASK)
    ours, stock = head_of(model).logits(hidden), layout.pack(stock_logits(model, inputs))
    torch.testing.assert_close(ours, stock, atol=1e-10, rtol=1e-10)

    direction = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    (ours * direction).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    (stock * direction).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-9, rtol=1e-9, msg=name)


def test_padding_never_changes_a_result(make_t5: Make) -> None:
    model = make_t5()
    with torch.no_grad():
        wide, _ = decode(model, encode(model, SOURCE, SOURCE_MASK), shift_right(TARGET, 0), TARGET_MASK)
        row, _ = decode(
            model, encode(model, SOURCE[1:2, :2], SOURCE_MASK[1:2, :2]), shift_right(TARGET, 0)[1:2], TARGET_MASK[1:2]
        )
    torch.testing.assert_close(wide[3:7], row, atol=1e-12, rtol=1e-12)


def test_layout_packs_and_pads_back() -> None:
    layout = Layout.of(SOURCE_MASK)
    packed = layout.pack(SOURCE)
    assert packed.tolist() == [3, 4, 5, 6, 7, 8, 9, 4, 4, 4]
    assert torch.equal(layout.pad(packed), SOURCE * SOURCE_MASK)


@pytest.mark.usefixtures("exact_layer_norm")
@pytest.mark.parametrize("num_beams", [1, 3])
def test_steps_equal_the_teacher_forced_pass(make_t5: Make, num_beams: int) -> None:
    model = make_t5()
    tokens = torch.randint(0, 11, (3 * num_beams, 6), generator=torch.Generator().manual_seed(2))
    inputs = shift_right(tokens, 0)
    with torch.no_grad():
        memory = encode(model, SOURCE, SOURCE_MASK)
        decoder = StepDecoder(model, memory, 6, num_beams)
        steps = torch.stack([decoder.step(inputs[:, t]) for t in range(6)], dim=1)
        for beam in range(num_beams):
            rows = torch.arange(3) * num_beams + beam
            whole, _ = decode(model, memory, inputs[rows], torch.ones(3, 6, dtype=torch.bool))
            torch.testing.assert_close(steps[rows].flatten(0, 1), whole, atol=1e-10, rtol=1e-10)


def test_dropping_and_reordering_rows_keeps_their_history(make_t5: Make) -> None:
    model = make_t5()
    tokens = torch.randint(2, 11, (6, 4), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        memory = encode(model, SOURCE, SOURCE_MASK)
        plain = StepDecoder(model, memory, 5, num_beams=2)
        moved = StepDecoder(model, memory, 5, num_beams=2)
        for t in range(3):
            plain.step(tokens[:, t])
            moved.step(tokens[:, t])
        swap = torch.tensor([1, 0, 2, 3, 5, 4])
        moved.reorder(swap)
        moved.keep(torch.tensor([0, 2]))
        expected = plain.step(tokens[:, 3])[torch.tensor([1, 0, 5, 4])]
        torch.testing.assert_close(moved.step(tokens[torch.tensor([1, 0, 5, 4]), 3]), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("exact_layer_norm")
def test_mt5_whose_config_lacks_the_scale_equals_the_stock_model() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MT5Config(vocab_size=11, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0)
        model = MT5ForConditionalGeneration(config).double().eval()
    inputs = shift_right(TARGET, 0)
    hidden, layout = decode(model, encode(model, SOURCE, SOURCE_MASK), inputs, TARGET_MASK)
    stock = layout.pack(stock_logits(model, inputs))
    torch.testing.assert_close(head_of(model).logits(hidden), stock, atol=1e-6, rtol=1e-6)
