"""How often a rollout looks at which rows have ended changes nothing but how often a device is waited for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from kd_core.models.policy import encode
from kd_core.rollout.responses import Rollout
from kd_core.rollout.sampling import SamplingSettings, Writer, sample_from
from tests.kd_core.waits import Waits
from tests.kd_core.windows.test_gpt_neo import tiny_gpt_neo

Make = Callable[..., Any]
ROWS, LIMIT = 24, 18
SOURCE = 3 + torch.arange(ROWS * 5).view(ROWS, 5) % 7
MASK = torch.arange(5) < 1 + torch.arange(ROWS)[:, None] % 5


def tiny_llama() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=[1, 2],
            pad_token_id=0,
        )
        return AutoModelForCausalLM.from_config(config).double().eval()


def models(make_t5: Make) -> dict[str, Any]:
    neo = tiny_gpt_neo()
    neo.config.eos_token_id = neo.config.pad_token_id = 1
    return {"t5": make_t5(), "gpt_neo": neo, "packed": tiny_llama()}


@torch.no_grad()
def written(model: Any, look_every: int | None, limit: int = LIMIT) -> Rollout:
    writer = Writer(model, encode(model, SOURCE, MASK), limit, None)
    generator = torch.Generator().manual_seed(0)
    return sample_from(writer, SamplingSettings(max_new_tokens=limit), generator, look_every=look_every)


@pytest.mark.parametrize("kind", ["t5", "gpt_neo", "packed"])
@pytest.mark.parametrize("every", [2, 8, 1000])
def test_a_rollout_is_the_same_however_often_one_looks(make_t5: Make, kind: str, every: int) -> None:
    model = models(make_t5)[kind]
    always, seldom = written(model, 1), written(model, every)
    for name, expected in vars(always).items():
        torch.testing.assert_close(getattr(seldom, name), expected, atol=1e-12, rtol=1e-12, msg=name)
    lengths = always.mask_BT.sum(dim=1)
    assert lengths.min() < 4 < lengths.max(), "rows end early and late"


@pytest.mark.parametrize("kind", ["t5", "packed"])
def test_where_all_end_early_no_column_is_left_over(make_t5: Make, kind: str) -> None:
    model = models(make_t5)[kind]
    always, seldom = written(model, 1, 200), written(model, 64, 200)
    assert not always.truncated_B.any()
    assert torch.equal(always.tokens_BT, seldom.tokens_BT)


@pytest.mark.parametrize("kind", ["t5", "gpt_neo", "packed"])
def test_between_looks_no_device_would_be_waited_for(make_t5: Make, kind: str) -> None:
    model = models(make_t5)[kind]
    written(model, 1)  # the first time, the model is probed
    counts: dict[tuple[int | None, int], int] = {}
    for every, limit in ((None, 16), (1, 16), (8, 16), (8, 8)):
        with Waits() as waits:
            written(model, every, limit)
        counts[every, limit] = waits.count
    assert counts[8, 16] - counts[8, 8] <= 10, "eight steps and a look"
    assert counts[None, 16] == counts[1, 16] > counts[8, 16] + 12, "a CPU is not waited for"


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["t5", "gpt_neo", "packed"])
def test_a_step_does_not_wait_for_a_cuda_device(make_t5: Make, kind: str) -> None:
    model = models(make_t5)[kind].float().cuda()
    with torch.no_grad():
        writer = Writer(model, encode(model, SOURCE.cuda(), MASK.cuda()), LIMIT, None)
        writer.logits(None)
        tokens = torch.full((ROWS,), 3, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(8):
                tokens = writer.logits(tokens).argmax(dim=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
