"""Attention without padding: what is packed is what padded attention sees; on a CUDA device its results are too."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kd_core.models.backends.attention import EnoughRead, PackedRows, Places
from kd_core.models.backends.decoder_only import _Prompts, _Responses
from kd_core.models.backends.pairs import Memory
from kd_core.models.backends.varlen import Ends, Packed, attend, serves
from kd_core.models.packing import Layout
from kd_core.models.policy import encode, head_of, target_states

H, G, K = 4, 2, 8
PROMPTS, RESPONSES = (5, 0, 9, 2), (3, 4, 0, 1)  # tokens, before the prompt's last: none is a row too


def mask_of(lengths: tuple[int, ...], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def heads(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """As a stock module has them: (1, H, N, K), (1, G, N, K) twice."""
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, n, tokens, K, generator=rng) for n in (H, G, G))
    return q, k, v


def prompts() -> _Prompts:
    layout = Layout.of(mask_of(PROMPTS, 16))
    place_1S = torch.arange(16)[None]
    return _Prompts(layout, 7, Places(place_1S, place_1S, 16, needs_mask=False))


def responses(memory: Memory) -> _Responses:
    query_BT = memory.length_B[:, None] + torch.arange(16)
    key_BJ = torch.cat([memory.position_BS, query_BT], dim=1)
    return _Responses(Layout.of(mask_of(RESPONSES, 16)), memory, Places(query_BT, key_BJ, key_BJ.shape[1]))


def rows_of(packed: Packed) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values of each row: (T, H, K), (J, G, K) twice."""
    cut = []
    for ends, tensors in (
        (packed.queries, (packed.query_MHK,)),
        (packed.keys, (packed.key_XGK, packed.value_XGK)),
    ):
        sizes = ends.end_B1.diff().tolist()
        assert ends.end_B1.dtype == torch.int32
        assert ends.longest >= max(sizes)
        cut += [x.split(sizes) for x in tensors]
    return list(zip(*cut, strict=True))


def test_prompts_are_packed_row_by_row_and_remembered() -> None:
    padded, packing = prompts(), prompts()
    q, k, v = padded.take(0, *heads(sum(PROMPTS), 0))
    assert isinstance(packing, PackedRows)
    for row, each in enumerate(rows_of(packing.packed(0, *heads(sum(PROMPTS), 0)))):
        for ours, theirs in zip(each, (q, k, v), strict=True):
            assert torch.equal(ours, theirs[row, :, : PROMPTS[row]].transpose(0, 1))
    for ours, theirs in zip(packing.keys_values[0], padded.keys_values[0], strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(EnoughRead):
        packing.packed(7, *heads(sum(PROMPTS), 0))


@pytest.mark.parametrize("remembered", [True, False])
def test_a_responses_keys_follow_those_of_its_prompt(remembered: bool) -> None:
    read = prompts()
    if remembered:
        read.take(0, *heads(sum(PROMPTS), 0))
    memory = Memory(tuple(read.keys_values.values()), read.layout, torch.zeros(4, dtype=torch.long))
    if not remembered:  # no prompt has more than its last token
        memory = Memory((), Layout.of(mask_of((0, 0, 0, 0), 16)), memory.last_B)
    q, k, v = responses(memory).take(0, *heads(sum(RESPONSES), 1))
    seen_BJ = torch.cat([memory.layout.mask_BS, mask_of(RESPONSES, 16)], dim=1)[:, -k.shape[2] :]
    for row, each in enumerate(rows_of(responses(memory).packed(0, *heads(sum(RESPONSES), 1)))):
        assert torch.equal(each[0], q[row, :, : RESPONSES[row]].transpose(0, 1))
        for ours, theirs in zip(each[1:], (k, v), strict=True):
            assert torch.equal(ours, theirs[row, :, seen_BJ[row]].transpose(0, 1))
        assert len(each[1]) == RESPONSES[row] + PROMPTS[row] * remembered


def test_the_kernel_takes_what_it_is_given() -> None:
    """Shapes and types alone, on a CUDA device that is none."""
    with FakeTensorMode():
        end = torch.empty(5, dtype=torch.int32, device="cuda")
        q, k, v = (torch.empty(12, n, K, dtype=torch.bfloat16, device="cuda") for n in (H, G, G))
        out = attend(Packed(q, k, v, Ends(end, 16), Ends(end, 32)), 0.5)
        assert (out.shape, out.dtype) == (q.shape, torch.bfloat16)


def test_a_cpu_pads() -> None:
    assert not serves(torch.empty(1, H, 3, K, dtype=torch.bfloat16))


@pytest.mark.cuda
def test_on_a_cuda_device_each_row_is_what_it_is_alone() -> None:
    read = prompts()
    read.take(0, *heads(sum(PROMPTS), 0))
    memory = Memory(tuple(read.keys_values.values()), read.layout, torch.zeros(4, dtype=torch.long))
    packed = responses(memory).packed(0, *heads(sum(RESPONSES), 1))
    tensors = (x.to("cuda", torch.bfloat16) for x in (packed.query_MHK, packed.key_XGK, packed.value_XGK))
    ends = (Ends(each.end_B1.cuda(), each.longest) for each in (packed.queries, packed.keys))
    on_device = Packed(*tensors, *ends)  # type: ignore[call-arg, arg-type]
    assert serves(on_device.query_MHK)
    ours = attend(on_device, 0.3).split(list(RESPONSES))
    for out, (q, k, v) in zip(ours, rows_of(packed), strict=True):
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        parts = (x.transpose(0, 1)[None] for x in (q, k, v))
        alone = F.scaled_dot_product_attention(*parts, attn_mask=seen, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(out.float().cpu(), alone[0].transpose(0, 1), atol=3e-2, rtol=3e-2)


@pytest.mark.cuda
def test_on_a_cuda_device_states_and_gradients_are_those_of_padded_attention() -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
    model: Any = AutoModelForCausalLM.from_config(config).cuda().eval()
    ids, tokens = (torch.randint(3, 61, (4, width), device="cuda") for width in (12, 9))
    masks = mask_of((12, 1, 5, 7), 12).cuda(), mask_of((9, 3, 1, 6), 9).cuda()
    found = {}
    for half in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            memory: Any = encode(model, ids, masks[0])
            hidden, _ = target_states(model, memory, tokens, masks[1])
            loss = head_of(model).logits(hidden).float().logsumexp(dim=1).sum()
        found[half] = [hidden.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    for half_precision, full in zip(found[True], found[False], strict=True):
        distance = (half_precision.float() - full).abs().mean() / full.abs().mean()
        assert distance < 0.05
