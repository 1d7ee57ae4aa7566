"""No (B, T, V) tensor is made of decoder-only models, whatever is done with them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from kd_core.losses.lm_head import BLOCK_NUMBERS, weighted_nll
from kd_core.losses.rewards import RewardSettings
from kd_core.models.policy import backend_of, encode, head_of, target_states
from kd_core.rollout.responses import Responses
from kd_core.rollout.sampling import SamplingSettings, sample
from kd_core.rollout.scoring import judge
from tests.kd_core.largest import Largest

Batch = tuple[Tensor, Tensor]


def score(model: Any, prompts: Batch, tokens: Batch) -> None:
    truncated = torch.ones(len(tokens[0]), dtype=torch.bool)
    judge(model, encode(model, *prompts), Responses(*tokens, truncated), RewardSettings(truncated="bootstrap"))


def learn(model: Any, prompts: Batch, tokens: Batch) -> None:
    memory: Any = encode(model, *prompts)
    hidden, layout = target_states(model, memory, *tokens)
    loss = weighted_nll(hidden, head_of(model), layout.pack(tokens[0]), torch.ones(len(hidden)))
    loss.backward()


def write(model: Any, prompts: Batch, tokens: Batch) -> None:
    with torch.no_grad():
        memory = encode(model, *prompts)
    sample(model, memory, SamplingSettings(max_new_tokens=tokens[0].shape[1]), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("what", [score, learn, write])
@pytest.mark.parametrize(("vocabulary", "rows", "time"), [(49_152, 32, 24), (262_144, 16, 12)])
def test_no_tensor_of_batch_by_time_by_vocabulary_is_made(
    what: Callable[..., None], vocabulary: int, rows: int, time: int
) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        eos_token_id=2,
        pad_token_id=0,
        **heads,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert backend_of(model).name == "packed"
    tokens, prompt = torch.randint(3, vocabulary, (rows, time)), torch.randint(3, vocabulary, (rows, 6))
    with Largest() as largest:
        what(model, (prompt, torch.ones_like(prompt).bool()), (tokens, torch.ones_like(tokens).bool()))
    least = min(rows * vocabulary, BLOCK_NUMBERS // 2)  # what is made of a block, or of each row's last state, is seen
    assert least <= largest.numbers < rows * time * vocabulary / 5
