"""What a backend may be trusted with is found out before it is used, and what nothing serves is refused by name."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from kd_core.models.policy import PACKED, backend_of, encode, head_of
from tests.kd_core.models.backends.families import GROUPED, HEADS, SIZES, WINDOWED, ragged, stock_rows


def made(name: str, **sizes: Any) -> Any:
    config = AutoConfig.for_model(name, **({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def test_attention_that_asks_for_more_than_is_known_is_left_to_the_stock_forward() -> None:
    # GPT-OSS is on the interface, and hands it sinks beside queries and keys
    model = made("gpt_oss", **WINDOWED, num_local_experts=2, num_experts_per_tok=1)
    assert backend_of(model).name == "padded"


def test_a_window_that_attention_is_not_told_of_is_kept() -> None:
    # Qwen2-MoE makes a mask with a window, and does not say its size to attention
    sizes = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    model, prompts, responses = made("qwen2_moe", **GROUPED, **sizes, **window), ragged((9, 3), 1), ragged((4, 6), 2)
    assert backend_of(model).name == "packed"
    with torch.no_grad():
        memory = encode(model, *prompts)
        inputs = torch.cat([memory.last_B[:, None], responses[0][:, :-1]], dim=1)  # type: ignore[attr-defined]
        states, _ = PACKED.decode(model, memory, inputs, responses[1])
        stock = stock_rows(model, prompts, responses)
    torch.testing.assert_close(head_of(model).logits(states), stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "scale"), [("granite", 1 / 3), ("hyperclovax", 3.0)])
def test_one_field_means_a_factor_here_and_a_divisor_there(name: str, scale: float) -> None:
    assert head_of(made(name, **GROUPED, logits_scaling=3.0)).scale == pytest.approx(scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_is_told_from_rounding(dtype: torch.dtype) -> None:
    model = made("cohere", **GROUPED, logit_scale=0.8).to(dtype)
    assert head_of(model).scale == 0.8


@pytest.mark.parametrize(
    ("name", "sizes", "problem"),
    [
        ("bert", SIZES | HEADS, "its logits differ from those of its own forward pass"),  # it looks ahead
        ("mamba", {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}, "a token at a time"),
    ],
)
def test_what_nothing_serves_is_refused_by_name(name: str, sizes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=rf"a model of type '{name}' cannot be run here \(.*{problem}.*\)\ntake one"):
        backend_of(made(name, **sizes))


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'llama' cannot be run here \(.*it has no head that makes logits"):
        backend_of(made("llama", **GROUPED).model)


def test_a_device_without_memory_is_no_reason_for_a_slower_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def large(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 64 GiB")

    model = made("llama", **GROUPED)
    monkeypatch.setattr(model.get_decoder(), "forward", large)
    with pytest.raises(torch.OutOfMemoryError):
        backend_of(model)
    monkeypatch.undo()
    assert backend_of(model) is PACKED


def test_nothing_is_left_of_a_probe() -> None:
    model = made("llama", **GROUPED, attention_dropout=0.5).train()
    model.model.norm.eval()
    state = torch.random.get_rng_state()
    backend_of(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert not model.model.norm.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_probe_under_autocast_is_as_exact_as_the_weights() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert head_of(made("cohere", **GROUPED, logit_scale=0.95)).scale == 0.95


def test_a_model_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = made("llama", **GROUPED), []
    stock = LlamaForCausalLM.forward

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        passes.append(1)
        return stock(self, *arguments, **named)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    head_of(model)
    asked = len(passes)
    encode(model, *ragged((5, 3), 1))
    head_of(model)
    assert asked == len(passes) > 0
