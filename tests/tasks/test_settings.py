"""Settings that are made of other settings."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tasks.settings import part_of


@dataclass(frozen=True, kw_only=True)
class Inner:
    rows: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")


@dataclass(frozen=True, kw_only=True)
class Outer(Inner):
    more: str = "x"

    def __post_init__(self) -> None:
        """Its parts check themselves."""


def test_a_part_is_what_its_class_says_and_no_subclass() -> None:
    found = part_of(Outer(rows=2, seed=7), Inner)
    assert type(found) is Inner
    assert found == Inner(rows=2, seed=7)


def test_what_is_changed_is_not_taken() -> None:
    assert part_of(Outer(rows=2, seed=7), Inner, seed=1) == Inner(rows=2, seed=1)


def test_a_setting_that_is_nowhere_is_an_error_and_no_default() -> None:
    with pytest.raises(AttributeError, match="more"):
        part_of(Inner(), Outer)


def test_a_part_checks_its_ranges() -> None:
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        part_of(Outer(rows=0), Inner)
