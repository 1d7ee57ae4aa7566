"""Lengths that settings leave to the run: filled in wherever they lie, and refused where nobody has."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from kd_core.lengths import Lengths, check_lengths, source_length, target_length
from kd_core.models.policy import encode
from kd_core.models.prompts import wrapped_rows
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.beam_search import BeamSettings, beam_search
from kd_core.rollout.mixed_sampling import sample_mixed
from kd_core.rollout.sampling import SamplingSettings, greedy, sample

Make = Callable[..., Any]
LENGTHS = Lengths(source=30, target=9)


@dataclass(frozen=True, kw_only=True)
class Inner:
    written: int = target_length()
    zero: int = 0  # no length


@dataclass(frozen=True, kw_only=True)
class Outer:
    read: int = source_length()
    inner: Inner = field(default_factory=Inner)
    none: Inner | None = None

    def __post_init__(self) -> None:
        check_lengths(self)


def test_what_is_not_given_is_the_runs_at_any_depth() -> None:
    assert LENGTHS.fill(Outer()) == Outer(read=30, inner=Inner(written=9))
    assert LENGTHS.fill(Outer(read=5, none=Inner(written=2))) == Outer(
        read=5, inner=Inner(written=9), none=Inner(written=2)
    )
    for whole in (Outer(read=5, inner=Inner(written=2)), None, "text"):
        assert LENGTHS.fill(whole) is whole


def test_lengths_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="source must be at least 1, got 0"):
        Lengths(source=0)
    with pytest.raises(ValueError, match="read must be at least 1, or 0 for the run's, got -1"):
        Outer(read=-1)


def test_a_loop_refuses_a_length_that_nobody_has_given(make_t5: Make) -> None:
    model, rng = make_t5(seed=0), torch.Generator().manual_seed(0)
    memory = encode(model, torch.tensor([[3, 4, 1]]), torch.ones((1, 3), dtype=torch.bool))
    tokenizer, texts = None, ["a b", "c"]  # nothing is tokenised
    for name, call in (
        ("max_new_tokens", lambda: sample(model, memory, SamplingSettings(), rng)),
        ("max_new_tokens", lambda: sample_mixed(model, memory, model, memory, 0.5, SamplingSettings(), rng)),
        ("max_new_tokens", lambda: greedy(model, memory, SamplingSettings().max_new_tokens)),
        ("max_new_tokens", lambda: beam_search(model, memory, BeamSettings())),
        ("max_source_tokens", lambda: TokenRows.encode(tokenizer, texts, Outer().read)),
        ("max_source_tokens", lambda: wrapped_rows(tokenizer, "say {source}", texts, Outer().read)),
        ("max_target_tokens", lambda: TokenRows.targets(tokenizer, texts, Inner().written)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0\n0 is for a run to fill in"):
            call()
