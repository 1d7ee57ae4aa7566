"""Models loaded in bfloat16: their states stay in it, and what is made of their logits is float32, on every backend."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kd_core.losses.lm_head import token_log_probs, weighted_nll
from kd_core.models.policy import backend_of, encode, head_of
from kd_core.rollout.sampling import SamplingSettings, sample
from tests.kd_core.models.backends.families import PROMPTS, RESPONSES, ragged, states, stock_rows, tiny

FAMILIES = {"llama": "packed", "gemma2": "packed", "cohere": "packed", "gpt2": "packed", "falcon": "padded"}
FAMILIES |= {"bart": "padded", "gpt_neo": "gpt_neo", "t5": "t5"}


@pytest.mark.parametrize(("name", "backend"), FAMILIES.items())
def test_a_model_in_bfloat16(name: str, backend: str, tmp_path: Path) -> None:
    exact = tiny(name)
    exact.save_pretrained(tmp_path)
    auto = AutoModelForSeq2SeqLM if exact.config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    prompts, responses = ragged(PROMPTS, 3), ragged(RESPONSES, 4)
    target, settings = responses[0][responses[1]], SamplingSettings(max_new_tokens=4)
    assert backend_of(model).name == backend
    hidden, head = states(model, prompts, responses), head_of(model)
    assert (hidden.dtype, head.weight_VD.dtype) == (torch.bfloat16, torch.bfloat16)
    ours = token_log_probs(hidden, head, target)
    with torch.no_grad():
        logits = stock_rows(exact, prompts, responses)
        written = sample(model, encode(model, *prompts), settings, torch.Generator().manual_seed(8))
    assert ours.dtype == written.log_prob_BT.dtype == torch.float32
    wanted = logits.log_softmax(dim=1).gather(1, target[:, None]).squeeze(1)
    error, spread = (ours - wanted).abs().mean(), (logits - logits.mean(dim=1, keepdim=True)).abs().mean()
    assert error < 0.1 * spread
    loss = weighted_nll(hidden, head, target, torch.full((len(target),), 1 / len(target)))
    loss.backward()
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}
