"""Blocks that are run again on the way back: the same gradients, byte for byte, from less that is kept."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from kd_core.losses.lm_head import weighted_nll
from kd_core.models.backends.lora import LoraSettings, add_adapter
from kd_core.models.backends.recomputing import recomputing
from kd_core.models.policy import head_of
from tests.kd_core.models.backends.families import FAMILIES, GROUPED, PROMPTS, RESPONSES, ragged, states, tiny
from tests.kd_core.models.backends.test_probe import made

every_family = pytest.mark.parametrize("name", FAMILIES)


def gradients(model: Any, *, again: bool) -> list[Tensor | None]:
    """Of a likelihood, with the dropout of one seed."""
    prompts, responses = ragged(PROMPTS, 3), ragged(RESPONSES, 4)
    target = responses[0][responses[1]]
    with recomputing(model) if again else nullcontext():
        torch.manual_seed(3)
        hidden = states(model, prompts, responses)
        loss = weighted_nll(hidden, head_of(model), target, torch.ones(len(target), dtype=hidden.dtype))
        wanted = [p for p in model.parameters() if p.requires_grad]
        return list(torch.autograd.grad(loss, wanted, allow_unused=True))


def assert_same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for ours, plain in zip(found, expected, strict=True):
        assert (ours is None) == (plain is None)
        assert ours is None or plain is None or torch.equal(ours, plain)


@every_family
def test_gradients_are_the_same_bytes_in_evaluation_mode(name: str) -> None:
    model = tiny(name)
    assert_same(gradients(model, again=True), gradients(model, again=False))
    assert not any("forward" in vars(module) for module in model.modules()), "the model is not left as it was"


@pytest.mark.parametrize("name", ["t5", "bart", "llama", "gpt_neo"])
def test_gradients_are_the_same_bytes_under_dropout(name: str) -> None:
    model = tiny(name).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
        for field in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, field, None), float):
                setattr(module, field, 0.3)
    assert_same(gradients(model, again=True), gradients(model, again=False))
    drawn, other = (gradients(model.train(mode), again=True) for mode in (True, False))
    assert not all(a is None or b is None or torch.equal(a, b) for a, b in zip(drawn, other, strict=True))


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_gradients_of_an_adapter_are_the_same_bytes(name: str) -> None:
    model = tiny(name)
    add_adapter(model, LoraSettings(rank=2, dropout=0.2), 0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    model.train()
    assert_same(gradients(model, again=True), gradients(model, again=False))


def kept(model: Any, *, again: bool) -> int:
    """Bytes of all that is kept for the way back, weights aside."""
    own, found = {p.data_ptr() for p in model.parameters()}, dict[int, int]()

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    prompts, responses = ragged((24, 20), 3), ragged((30, 24), 4)
    with recomputing(model) if again else nullcontext(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        hidden = states(model, prompts, responses)
    assert hidden.requires_grad
    return sum(found.values())


def test_less_is_kept() -> None:
    llama = made("llama", **GROUPED | {"num_hidden_layers": 6, "max_position_embeddings": 64})
    config = T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=6, num_heads=4, decoder_start_token_id=0)
    neo = made("gpt_neo", hidden_size=32, num_layers=6, num_heads=4, attention_types=[[["global", "local"], 3]])
    for model in (llama, T5ForConditionalGeneration(config).eval(), neo):
        assert kept(model, again=True) < 0.5 * kept(model, again=False), model.config.model_type


def test_a_model_without_blocks_is_refused() -> None:
    model = torch.nn.Linear(1, 1)
    model.config = type("Config", (), {"model_type": "strange"})()  # type: ignore[assignment]
    with (
        pytest.raises(ValueError, match=r"'strange' has no blocks that can be run again\nset runtime.gradient_check"),
        recomputing(model),
    ):
        pass
