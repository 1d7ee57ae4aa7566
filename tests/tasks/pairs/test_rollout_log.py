"""The rollouts that `llmr` writes down are the same ones whoever wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from kd_core.models.tokenizer import train_tokenizer
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import BatchSettings
from kd_core.train.ranks import Ranks
from kd_core.train.state import OptimizerSettings, TrainState
from tasks.compute.models import LoadedModel
from tasks.pairs.llmr import Experience, LLMRSettings, RolloutLog, train_llmr
from tests.kd_core.conftest import tiny_t5
from tests.kd_core.together import together
from tests.kd_core.train.test_loops import SOURCES

if TYPE_CHECKING:
    from pathlib import Path


def logged(rows: int) -> list[dict[str, Any]]:
    """Of three updates, two micro-batches each, of so many rows."""
    student, teacher, seen = tiny_t5(vocab_size=12, seed=4), tiny_t5(vocab_size=12, seed=5), dict[int, Experience]()
    settings = LLMRSettings(
        steps=3,
        validate_every=1,
        validation_rows=2,
        sampling=SamplingSettings(max_new_tokens=6),
        batch=BatchSettings(micro_batch_rows=rows, micro_batches=2),
        optimizer=OptimizerSettings(learning_rate=1e-3),
    )
    state = TrainState.start(student, settings.optimizer, Ranks.here())
    kept = RolloutLog(LoadedModel(student, train_tokenizer(["ab ba aab abb bab"], 12)), list(range(40)), seen)
    for row in train_llmr(state, teacher, SOURCES, SOURCES, settings, 0, observe=seen):
        kept.add(row)
    return kept._rows


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_what_is_written_down_is_the_first_of_the_first_micro_batch(tmp_path: Path, rows: int) -> None:
    """By three ranks too, of which with one row a micro-batch only one has any."""
    torch.set_num_threads(1)
    alone, (first, *_) = logged(rows), together(logged, 3, tmp_path, rows)
    assert {row["step"] for row in alone} == {1, 2, 3}
    assert len({row["rollout"] for row in alone}) == min(rows, 4)
    assert len(first) == len(alone)
    for found, expected in zip(first, alone, strict=True):
        assert {name: found[name] for name in ("step", "rollout", "id", "position", "token", "token_id")} == {
            name: expected[name] for name in ("step", "rollout", "id", "position", "token", "token_id")
        }
        for name in ("q_value", "value", "reward", "gain", "log_prob"):
            assert found[name] == pytest.approx(expected[name], abs=1e-8)
