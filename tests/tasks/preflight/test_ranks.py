"""More workers than rows of a batch are said before a run starts, where that is about training."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.engine.settings import RuntimeSettings
from tasks.preflight.ranks import idle_workers, no_room

PARAMETERS = {
    "method": {
        "batch": {"micro_batch_rows": 64, "micro_batch_tokens": 2048, "micro_batches": 4},
        "max_source_tokens": 1024,
    },
    "teacher": {"fit": {"batch": {"micro_batch_rows": 3, "micro_batch_tokens": 2048, "micro_batches": 3}}},
    "score": {"batch_rows": 2},
}


def test_an_update_that_some_workers_get_no_row_of_is_named() -> None:
    """Four micro-batches of two sources of 1,024 tokens are eight rows; three of three rows are nine."""
    assert idle_workers(RuntimeSettings(engine="ray", workers=16), PARAMETERS) == (
        "of 16 workers some have nothing to train on: an update may have no more rows than 8 by method.batch, "
        "9 by teacher.fit.batch"
    )
    said = idle_workers(RuntimeSettings(engine="ray", workers=9), PARAMETERS)
    assert said is not None
    assert said.endswith("than 8 by method.batch")


def test_as_many_workers_as_rows_and_a_number_that_is_not_known_yet_are_fine() -> None:
    assert idle_workers(RuntimeSettings(engine="ray", workers=8), PARAMETERS) is None
    assert idle_workers(RuntimeSettings(engine="ray"), PARAMETERS) is None


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ({"workers": 4}, None),
        ({"workers": 2, "threads": 2}, None),
        ({"threads": 4}, None),
        ({"workers": 99, "address": "head:6379"}, None),  # what it has is not known yet
        (
            {"workers": 3, "threads": 2},
            "3 workers of 2 CPUs each do not fit on this machine's 4\n"
            "set runtime.workers to 2 at most, or runtime.address to a cluster",
        ),
        (
            {"threads": 5},
            "1 worker of 5 CPUs each do not fit on this machine's 4\n"
            "set threads to 4 at most, or runtime.address to a cluster",
        ),
    ],
)
def test_workers_that_a_machine_has_no_cpus_for(
    runtime: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert no_room(RuntimeSettings(engine="ray", **runtime)) == said
    assert no_room(RuntimeSettings(threads=99)) is None


def test_a_ray_that_is_joined_already_has_cpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for joined in (True, False):
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda joined=joined: joined))
        assert (no_room(RuntimeSettings(engine="ray", workers=99)) is None) is joined
