"""Numbers at the edge: what the libraries' types hold, and what they do not."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from kd_core.rollout.sampling import mixed_seed
from tasks.pairs.exposure import ExposureSettings
from tasks.ranges import FLOAT32, SEEDS, check_numbers
from tasks.store.keys import key_record


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1.0
    rows: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    betas: tuple[float, float] = (0.9, 0.999)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("seed", 2**63 - 1), ("a.data_seed", 0), ("seeds", [0, 1, 2**63 - 1]), ("rows", 2**31 - 1), ("rows", None)],
        *[("on", True), ("rate", 0.0), ("rate", FLOAT32[0]), ("rate", -FLOAT32[1]), ("text", "nan"), ("threads", 1024)],
        ("method", Outer()),
    ],
)
def test_what_every_library_holds_passes(name: str, value: Any) -> None:
    check_numbers(name, value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("seed", -1, "seed must be in [0, 9223372036854775807], got -1"),
        ("evaluation.seed", 2**63, "evaluation.seed must be in [0, 9223372036854775807], got 9223372036854775808"),
        ("seeds", [0, 2**64], "seeds must be in [0, 9223372036854775807], got 18446744073709551616"),
        ("seed", 10**100, "seed must be in [0, 9223372036854775807], got a number of 333 bits"),
        ("rows", 2**31, "rows must be at most 2147483647, got 2147483648"),
        ("limit", 0, "limit must be in [1, 2147483647], got 0"),
        ("runtime.threads", 1025, "runtime.threads must be in [1, 1024], got 1025"),
        ("values", [0.5, float("inf")], "values must be a finite number, got inf"),
        ("method", Outer(inner=Inner(rate=float("nan"))), "method.inner.rate must be a finite number, got nan"),
        ("method", Outer(inner=Inner(seed=2**63)), "method.inner.seed must be in"),
        ("method", Outer(betas=(0.9, float("nan"))), "method.betas must be a finite number, got nan"),
        ("variants", {"a": {"method.temperature": 1e-50}}, "variants.a.method.temperature must be 0 or of a size in"),
        ("rate", 1e39, "rate must be 0 or of a size in [1.18e-38, 3.4e+38] (float32), got 1e+39"),
    ],
)
def test_what_some_library_cannot_hold_is_named(name: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        check_numbers(name, value)
    assert str(caught.value).startswith(said)


def test_the_largest_seed_is_one_for_every_generator_and_column() -> None:
    _, largest = SEEDS
    torch.Generator().manual_seed(largest)
    np.random.default_rng([largest, 3])
    assert mixed_seed(largest, 1, 2) <= largest
    assert pa.array([largest], pa.int64()).to_pylist() == [largest]
    with pytest.raises((OverflowError, pa.ArrowInvalid)):
        pa.array([largest + 1], pa.int64())


def test_the_borders_are_those_of_float32() -> None:
    assert (float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)) == FLOAT32


def test_a_stage_that_is_called_by_itself_refuses_them_too() -> None:
    with pytest.raises(ValueError, match=r"^settings\.rate must be a finite number, got nan$"):
        key_record("any", check_numbers, {"settings": Inner(rate=float("nan"))})
    with pytest.raises(ValueError, match=r"^seed must be in"):
        key_record("any", check_numbers, {"seed": 2**64 - 1})


def test_the_seed_of_the_last_sample_is_a_seed() -> None:
    assert ExposureSettings(seed=2**63 - 2, samples=2).decode(1).seed == SEEDS[1]
    with pytest.raises(ValueError, match=r"seed \+ samples - 1, the last sample's seed, must be at most"):
        ExposureSettings(seed=2**63 - 1, samples=2)
