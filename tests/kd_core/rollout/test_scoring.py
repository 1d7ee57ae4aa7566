"""The judge's fast pass against full logits of the stock teacher."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kd_core.losses.rewards import RewardSettings
from kd_core.models.policy import encode, shift_right
from kd_core.rollout.responses import Responses, mask_through_eos, truncated_rows
from kd_core.rollout.scoring import judge
from tests.kd_core.largest import Largest

SOURCE = torch.tensor([[3, 4, 5, 6], [8, 9, 0, 0], [4, 4, 4, 0], [9, 1, 0, 0]])
SOURCE_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]).bool()
TOKENS = torch.tensor([[5, 1, 0], [7, 8, 9], [1, 0, 0], [4, 5, 1]])  # row 1 is truncated


@pytest.mark.usefixtures("exact_layer_norm")
@pytest.mark.parametrize("num_tokens", [None, 9], ids=["whole vocabulary", "padded embedding"])
@pytest.mark.parametrize("truncated", ["drop", "bootstrap"])
@pytest.mark.parametrize("value", ["max", "softmax", "logsumexp"])
@pytest.mark.parametrize("centre", [True, False, "log_probs"])
def test_rewards_equal_those_from_full_logits(
    make_t5: Callable[..., Any], value: Any, truncated: Any, centre: Any, num_tokens: int | None
) -> None:
    teacher, tokens = make_t5(), TOKENS.clamp(max=8)
    mask = mask_through_eos(tokens, 1)
    cut = truncated_rows(tokens, mask, 1)
    chosen = RewardSettings(value=value, truncated=truncated, centre=centre)
    judged = judge(
        teacher, encode(teacher, SOURCE, SOURCE_MASK), Responses(tokens, mask, cut), chosen, num_tokens=num_tokens
    )

    # the stock model reads one token more than the output has: its last logits are the state after a truncated output
    inputs = shift_right(torch.cat([tokens, tokens.new_zeros(4, 1)], 1), 0)
    with torch.no_grad():
        out = teacher(input_ids=SOURCE, attention_mask=SOURCE_MASK.long(), decoder_input_ids=inputs, use_cache=False)
    logits = out.logits[:, :, :num_tokens]
    mean = logits.logsumexp(2, keepdim=True) if centre == "log_probs" else logits.mean(2, keepdim=True)
    centred = logits - mean if centre else logits
    v = {
        "max": centred.amax(2),
        "logsumexp": centred.logsumexp(2),
        "softmax": (logits.softmax(2) * centred).sum(2),
    }[value]
    for b in range(4):
        length, dropped = int(mask[b].sum()), truncated == "drop" and bool(cut[b])
        for t in range(3):
            if t >= length or dropped:
                assert judged.reward_BT[b, t] == 0
                assert not judged.mask_BT[b, t]
                continue
            after = v[b, t + 1] if t + 1 < length or (cut[b] and truncated == "bootstrap") else 0.0
            expected = centred[b, t, tokens[b, t]] - after
            torch.testing.assert_close(judged.reward_BT[b, t], expected, atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(judged.value_BT[b, t], v[b, t], atol=1e-9, rtol=1e-9)


def test_no_tensor_of_batch_by_time_by_vocabulary_is_made(make_t5: Callable[..., Any]) -> None:
    """Every tensor that the judge allocates is smaller than one (B, T, V) would be."""
    vocab, rows, time = 40_000, 32, 24
    teacher = make_t5(vocab_size=vocab)
    source = torch.randint(2, vocab, (rows, 6))
    tokens = torch.randint(2, vocab, (rows, time))
    ones = torch.ones_like(tokens, dtype=torch.bool)
    with Largest() as largest:
        judge(
            teacher,
            encode(teacher, source, torch.ones_like(source).bool()),
            Responses(tokens, ones, ~ones[:, 0]),
            RewardSettings(),
        )
    assert largest.numbers < rows * time * vocab / 5
