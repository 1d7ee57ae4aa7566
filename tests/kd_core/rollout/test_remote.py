"""A teacher behind a server judges by log-probabilities alone: exactly what the same teacher here makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kd_core.losses.rewards import RewardSettings, reward_to_go
from kd_core.models.backends.remote import remote_nll
from kd_core.models.policy import encode, encode_rows
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.responses import Rollout, mask_through_eos, truncated_rows
from kd_core.rollout.scoring import judge
from kd_core.train.llmr import Experience, advantages
from kd_core.train.supervised import Pairs, cross_entropy
from tests.kd_core.elsewhere import Elsewhere

EOS = 1
PROMPTS = TokenRows.of([[3, 4, 5], [6], [2, 7]])
TOKENS = torch.tensor([[5, 4, 1, 0], [7, 8, 3, 2], [1, 0, 0, 0]])  # the second is cut off
MASK = mask_through_eos(TOKENS, EOS)
CUT = truncated_rows(TOKENS, MASK, EOS)


def teacher(seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            eos_token_id=EOS,
            pad_token_id=0,
            initializer_range=0.5,  # so that its distributions are far from uniform
        )
        return LlamaForCausalLM(config).double().eval()


def judged(model: Any, settings: RewardSettings) -> Experience:
    rollout = Rollout(TOKENS, MASK, CUT, torch.zeros_like(TOKENS, dtype=torch.float64))
    found = judge(model, encode_rows(model, PROMPTS, torch.arange(3)), rollout, settings)
    gain = reward_to_go(found.reward_BT, found.mask_BT)
    return Experience.of(torch.zeros(3, dtype=torch.long), rollout, found, gain, None)


@pytest.mark.parametrize("value", ["max", "logsumexp"])
@pytest.mark.parametrize("truncated", ["drop", "bootstrap"])
@pytest.mark.parametrize("length_norm", [False, True])
@pytest.mark.parametrize("baseline", ["none", "value", "batch_mean", "leave_one_out"])
def test_all_is_as_by_the_same_teachers_logits(value: Any, truncated: Any, baseline: Any, length_norm: bool) -> None:
    model = teacher()
    settings = RewardSettings(
        value=value, truncated=truncated, baseline=baseline, length_norm=length_norm, centre="log_probs"
    )
    here, there = judged(model, settings), judged(Elsewhere(model, EOS), settings)
    for name in ("q_value_BT", "value_BT", "reward_BT", "gain_BT"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name), atol=1e-6, rtol=0)
    [by_logits], [by_log_probs] = advantages([here], settings), advantages([there], settings)
    torch.testing.assert_close(by_log_probs, by_logits, atol=1e-6, rtol=0)
    assert by_logits.abs().max() > 1e-3


@pytest.mark.parametrize("value", ["max", "logsumexp"])
@pytest.mark.parametrize("centre", [True, False])
def test_a_gain_less_the_value_is_that_of_the_papers_logits(value: Any, centre: bool) -> None:
    """Each state's logits lose another constant; sum of q(y_i) - V(s_i) does not see it."""
    model = teacher()
    paper = RewardSettings(value=value, baseline="value", centre=centre)
    [by_logits] = advantages([judged(model, paper)], paper)
    by_log_probs = replace(paper, centre="log_probs")
    [found] = advantages([judged(Elsewhere(model, EOS), by_log_probs)], by_log_probs)
    torch.testing.assert_close(found, by_logits, atol=1e-6, rtol=0)
    raw = judged(model, paper).gain_BT - judged(Elsewhere(model, EOS), by_log_probs).gain_BT
    assert raw.abs().max() > 1e-3  # the gains themselves do


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (RewardSettings(), "centre=True needs its logits: set log_probs"),
        (RewardSettings(centre="log_probs", value="softmax"), "value=softmax needs its distribution: set max"),
    ],
)
def test_a_reward_that_takes_more_than_log_probabilities_is_refused(settings: RewardSettings, problem: str) -> None:
    with pytest.raises(ValueError, match=f"a teacher behind a server cannot be asked for this reward\n{problem}"):
        judged(Elsewhere(teacher(), EOS), settings)


def test_its_loss_on_references_is_the_cross_entropy() -> None:
    model, targets = teacher(), [[5, 4, 1], [7, 1], [8, 8, 8, 1]]
    expected = cross_entropy(model, Pairs(PROMPTS, TokenRows.of(targets)), 3)
    prompts = [part.tolist() for part in PROMPTS.flat.split(PROMPTS.lengths.tolist())]
    assert remote_nll(Elsewhere(model, EOS), prompts, targets) == pytest.approx(expected, abs=1e-6)


def test_each_prompt_is_there_as_often_as_there_are_rollouts() -> None:
    ids = torch.tensor([[3, 4], [5, 0]])
    memory = encode(Elsewhere(teacher(), EOS), ids, torch.tensor([[True, True], [True, False]]))
    assert memory.repeated(2).prompts == [[3, 4], [3, 4], [5], [5]]  # type: ignore[attr-defined]
