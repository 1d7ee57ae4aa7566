"""A teacher that is no better than its student is said loudly, with both numbers; one that is better is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tasks.compute.teacher_check import warn_if_no_better
from tasks.store.artifacts import Store
from tasks.store.stage import Build, open_run, stage


@stage
def checked(build: Build, teacher_nll: float, student_nlls: Mapping[str, float]) -> None:
    """Nothing but the warning."""
    warn_if_no_better(build, teacher_nll, student_nlls, "held-out text")


def warnings(store: Store, teacher_nll: float, **student_nlls: float) -> list[str]:
    with open_run(store, name="test"):
        stats = checked(teacher_nll=teacher_nll, student_nlls=student_nlls).manifest().stats
    found: list[str] = stats.get("warnings", [])
    return found


@pytest.mark.parametrize(("teacher_nll", "warned"), [(3.0, True), (2.0, True), (1.999, False)])
def test_a_teacher_as_good_as_its_student_is_no_better(tmp_path: Path, teacher_nll: float, warned: bool) -> None:
    assert bool(warnings(Store(tmp_path), teacher_nll, llmr=2.0)) == warned


def test_it_names_the_best_student_and_both_numbers(tmp_path: Path) -> None:
    (said,) = warnings(Store(tmp_path), 4.9704, start=5.2, llmr=4.7, seqkd=4.9)
    assert said.startswith(
        "the teacher is no better than llmr: 4.970 against 4.700 nats per token on the held-out text; "
    )
