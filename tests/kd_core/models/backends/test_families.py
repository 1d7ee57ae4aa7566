"""Every decoder-only family on packed tokens: states, gradients and steps equal those of the stock forward pass.

The oracle is the stock model on each row alone, without padding, in float64; rotary families compute their angles in
float32, so 1e-6 is what can be asked.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from kd_core.models.backends.decoder_only import decode, encode
from kd_core.models.backends.decoder_only_steps import StepDecoder

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4},
    "gemma": GROUPED,
    "gemma2": GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "phi": SIZES,
    "phi3": GROUPED | {"pad_token_id": 0},
    "olmo2": GROUPED,
    "smollm3": GROUPED | {"pad_token_id": 0},
    "gpt_neox": SIZES,
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "gpt2": {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
}
PROMPTS, RESPONSES = [5, 1, 9], [4, 6, 2]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    config = AutoConfig.for_model(request.param, **FAMILIES[request.param])
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).double().eval()


def ragged(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, 61, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def packed_logits(model: Any, prompts: tuple[Tensor, Tensor], responses: tuple[Tensor, Tensor]) -> Tensor:
    memory = encode(model, *prompts)
    inputs = torch.cat([memory.last_B[:, None], responses[0][:, :-1]], dim=1)
    states, _ = decode(model, memory, inputs, responses[1])
    return head(model, states)


def head(model: Any, states: Tensor) -> Tensor:
    """The stock head, with what Gemma2 does after it."""
    logits: Tensor = model.lm_head(states) if hasattr(model, "lm_head") else model.embed_out(states)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def stock_logits(model: Any, prompts: tuple[Tensor, Tensor], responses: tuple[Tensor, Tensor]) -> Tensor:
    rows = []
    for (prompt, p_mask), (response, r_mask) in zip(
        zip(*prompts, strict=True), zip(*responses, strict=True), strict=True
    ):
        whole = torch.cat([prompt[p_mask], response[r_mask]])
        start = int(p_mask.sum()) - 1
        rows.append(model(whole[None], use_cache=False).logits[0, start : start + int(r_mask.sum())])
    return torch.cat(rows)


def test_logits_of_uneven_prompts_and_responses_are_the_stock_models(model: Any) -> None:
    prompts, responses = ragged(PROMPTS, 1), ragged(RESPONSES, 2)
    with torch.no_grad():
        ours, stock = packed_logits(model, prompts, responses), stock_logits(model, prompts, responses)
    torch.testing.assert_close(ours, stock, atol=1e-6, rtol=1e-6)


def test_gradients_through_prompts_and_responses_are_the_stock_models(model: Any) -> None:
    prompts, responses = ragged(PROMPTS, 3), ragged(RESPONSES, 4)
    weight = torch.randn((sum(RESPONSES), 61), generator=torch.Generator().manual_seed(5)).double()
    gradients = []
    for logits in (packed_logits, stock_logits):
        model.zero_grad()
        (logits(model, prompts, responses).log_softmax(dim=1) * weight).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    ours, stock = gradients
    assert ours.keys() == stock.keys()
    for name in stock:
        torch.testing.assert_close(ours[name], stock[name], atol=1e-5, rtol=1e-5, msg=name)


def test_greedy_steps_write_what_generate_writes_row_by_row(model: Any) -> None:
    prompts = ragged(PROMPTS, 6)
    with torch.no_grad():
        memory = encode(model, *prompts)
        steps, tokens = StepDecoder(model, memory, 8), [memory.last_B]
        for _ in range(8):
            tokens.append(head(model, steps.step(tokens[-1])).argmax(dim=1))
        ours = torch.stack(tokens[1:], dim=1)
        for row, (ids, mask) in enumerate(zip(*prompts, strict=True)):
            stock = model.generate(
                ids[mask][None], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=False
            )
            assert ours[row].tolist() == stock[0, int(mask.sum()) :].tolist()


def test_rows_that_end_are_dropped_and_change_nothing_for_the_others(model: Any) -> None:
    prompts = ragged(PROMPTS, 7)
    token = torch.tensor([7, 8, 9])
    with torch.no_grad():
        whole, fewer = (StepDecoder(model, encode(model, *prompts), 4) for _ in range(2))
        whole.step(token)
        fewer.step(token)
        fewer.keep(torch.tensor([0, 2]))
        expected = whole.step(token)[[0, 2]]
        torch.testing.assert_close(fewer.step(token[[0, 2]]), expected, atol=1e-9, rtol=1e-9)


def test_the_config_says_afterwards_what_it_said_before(model: Any) -> None:
    before = model.config._attn_implementation
    with torch.no_grad():
        encode(model, *ragged(PROMPTS, 8))
    assert model.config._attn_implementation == before
