"""Models whose layers lie on several devices: they score and write as whole ones do, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kd_core.models.backends.decoder_only_steps import StepDecoder
from kd_core.models.backends.sharded import layers_of
from kd_core.models.backends.spread import shared_evenly, spread
from kd_core.models.policy import backend_of, encode, head_of
from kd_core.rollout.beam_search import BeamSettings, beam_search
from kd_core.rollout.sampling import SamplingSettings, sample
from kd_core.windows.last_block import next_hidden
from tests.kd_core.models.backends.families import FAMILIES, PROMPTS, RESPONSES, ragged, states, tiny
from tests.kd_core.models.backends.two_devices import HOME, OTHER, TwoDevices

NAMES = [name for name, each in FAMILIES.items() if each.backend in ("packed", "padded")]
DECODERS = [name for name in NAMES if not tiny(name).config.is_encoder_decoder]
every_decoder = pytest.mark.parametrize("name", DECODERS)


def ending(name: str) -> Any:
    """A model that ends its texts soon: rows are dropped while others go on."""
    model = tiny(name)
    model.config.eos_token_id = model.generation_config.eos_token_id = list(range(2, 61, 4))
    return model


@torch.no_grad()
def told(model: Any, device: str = "cpu") -> list[Tensor]:
    """What a teacher is asked: logits of given texts, a prompt without a token before its last among them; texts."""
    pairs = [tuple(tuple(x.to(device) for x in ragged(each, 1)) for each in (first, RESPONSES)) for first in LENGTHS]
    found = [head_of(model).logits(states(model, *each)) for each in pairs]
    memory = encode(model, *pairs[0][0])
    settings = SamplingSettings(max_new_tokens=8)
    drawn = sample(model, memory, settings, torch.Generator(device).manual_seed(0))
    beams = beam_search(model, memory, BeamSettings(num_beams=3, max_new_tokens=8))
    return [x.cpu() for x in (*found, drawn.tokens_BT, drawn.log_prob_BT, beams.tokens_BT)]


LENGTHS = (PROMPTS, (1, 1, 1))


@every_decoder
def test_a_spread_model_tells_what_a_whole_one_does_and_mixes_no_devices(name: str) -> None:
    whole = told(ending(name))
    with TwoDevices() as two:
        model = spread(ending(name), [HOME, OTHER])
        where = [{x.device for x in layer.parameters()} for layer in layers_of(model)]
        found = told(model)
    assert where[0] == {HOME}
    assert where[-1] == {OTHER}
    assert two.moves > len(where)
    assert backend_of(model).name == FAMILIES[name].backend
    for x, y in zip(whole, found, strict=True):
        assert torch.equal(x, y)


@every_decoder
def test_windows_of_a_spread_model_are_those_of_a_whole_one(name: str) -> None:
    ids = torch.randint(3, 61, (5, 12), generator=torch.Generator().manual_seed(0))
    for predictions in (1, 4):
        with torch.no_grad():
            whole = next_hidden(tiny(name), ids, predictions)
            with TwoDevices():
                found = next_hidden(spread(tiny(name), [HOME, OTHER]), ids, predictions)
        assert torch.equal(whole, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layers_of_each_device_may_be_many(dtype: torch.dtype) -> None:
    """On one real device twice, with whatever a CPU does faster in these precisions."""
    model = tiny("llama", layers=4).to(dtype)
    whole = told(tiny("llama", layers=4).to(dtype))
    assert all(torch.equal(x, y) for x, y in zip(whole, told(spread(model, [HOME, HOME])), strict=True))
    with TwoDevices():
        model = spread(tiny("llama", layers=4).to(dtype), [HOME, OTHER])
        assert [next(layer.parameters()).device for layer in layers_of(model)] == [HOME, HOME, OTHER, OTHER]
        found = told(model)
    assert all(torch.equal(x, y) for x, y in zip(whole, found, strict=True))


def test_caches_of_steps_lie_with_their_layers() -> None:
    with TwoDevices() as two, torch.no_grad():
        model = spread(tiny("llama"), [HOME, OTHER])
        backend_of(model)  # tried out
        steps = StepDecoder(model, encode(model, *ragged(PROMPTS, 1)), 4)
        steps.step(torch.tensor([4, 5, 6]))
        assert [{x.device for x in pair} for pair in steps._caches.values()] == [{HOME}, {OTHER}]
        before = two.moves
        steps.step(torch.tensor([4, 5, 6]))
        assert two.moves - before < 8, "a step moves what is new of it, and no keys"


def test_devices_have_equally_much_and_the_first_has_what_is_no_layer() -> None:
    assert shared_evenly([10] * 8, 0, 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert shared_evenly([10] * 8, 20, 5) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert shared_evenly([10] * 8, 20, 2) == [0, 0, 0, 1, 1, 1, 1, 1]
    assert shared_evenly([10] * 80, 30, 8).count(0) == 7
    assert shared_evenly([10] * 2, 0, 1) == [0, 0]


def test_a_large_embedding_leaves_the_layers_to_the_other_devices() -> None:
    model = tiny("llama", layers=4)
    size = sum(x.nbytes for x in layers_of(model)[0].parameters())
    wide = 3 * size // model.get_input_embeddings().weight[0].nbytes  # with the head, as much as six layers
    model.resize_token_embeddings(wide, mean_resizing=False)
    with TwoDevices():
        spread(model, [HOME, OTHER])
        assert {x.device for layer in layers_of(model) for x in layer.parameters()} == {OTHER}
        assert model.get_input_embeddings().weight.device == head_of(model).weight_VD.device == HOME


def test_buffers_of_a_layer_lie_with_it_and_count_with_it() -> None:
    """Such as the tables of old models, which are no parameters."""
    model = tiny("llama", layers=4)
    size = sum(x.nbytes for x in layers_of(model)[0].parameters())
    for number, layer in enumerate(layers_of(model)):  # the last is as large as ten
        layer.register_buffer("table", torch.zeros(9 * size // 4 if number == 3 else 1))
    with TwoDevices():
        spread(model, [HOME, OTHER])
        assert [layer.table.device for layer in layers_of(model)] == [HOME, HOME, HOME, OTHER]
        assert all(next(layer.parameters()).device == layer.table.device for layer in layers_of(model))


def test_a_tied_head_is_one_tensor_and_all_that_is_no_layer_stays_on_the_first() -> None:
    with TwoDevices():
        model = spread(tiny("gpt2"), [HOME, OTHER])
        assert head_of(model).weight_VD is model.get_input_embeddings().weight
        inside = {x for layer in layers_of(model) for x in layer.parameters()}
        assert {x.device for x in model.parameters() if x not in inside} == {HOME}


def test_devices_that_are_mixed_are_seen() -> None:
    """Of the tests' own second device."""
    with TwoDevices() as two:
        here, there = torch.ones(2), torch.ones(2).to(OTHER)
        assert (here.device, there.device, (there * 2).device, there.to(HOME).device) == (HOME, OTHER, OTHER, HOME)
        assert torch.arange(2, device=there.device).device == OTHER
        assert two.moves == 2
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            here + there
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            torch.cat([here, there])
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            here[0] = there[0]


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "falcon"])
@pytest.mark.parametrize("devices", [("cuda:0", "cpu"), ("cpu", "cuda:0")])
def test_over_a_cuda_device_and_the_cpu(name: str, devices: tuple[str, str]) -> None:
    model = spread(ending(name), [torch.device(each) for each in devices])
    assert [next(layer.parameters()).device for layer in layers_of(model)][:: len(layers_of(model)) - 1] == [
        torch.device(each) for each in devices
    ]
    *logits, tokens, log_probs, beams = told(model, devices[0])
    *whole, _, _, expected = told(ending(name))
    for x, y in zip(whole, logits, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)
    assert torch.equal(expected, beams)
    assert tokens.shape == log_probs.shape


@pytest.mark.cuda
def test_packed_kernels_of_a_second_device_find_their_rows_there() -> None:
    """In half precision, where rows are not padded: layers on the GPU, ids and head on the CPU."""
    whole = told(tiny("llama").bfloat16())
    found = told(spread(tiny("llama").bfloat16(), [torch.device("cpu"), torch.device("cuda:0")]))
    for x, y in zip(whole[:2], found[:2], strict=True):
        torch.testing.assert_close(x, y, atol=0.5, rtol=0.1)
