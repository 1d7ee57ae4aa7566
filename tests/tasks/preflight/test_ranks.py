"""More workers than rows of a batch are said before a run starts, where that is about training."""

from __future__ import annotations

from tasks.engine.settings import RuntimeSettings
from tasks.preflight.ranks import idle_workers

PARAMETERS = {
    "method": {"batch": {"micro_batch_rows": 8, "micro_batches": 4}},
    "teacher": {"fit": {"batch": {"micro_batch_rows": 64}}},
    "score": {"batch_rows": 2},
}


def test_a_batch_that_some_workers_get_no_row_of_is_named() -> None:
    assert idle_workers(RuntimeSettings(engine="ray", workers=16), PARAMETERS) == (
        "of 16 workers some have nothing to train on, for a batch is shared out row by row: "
        "method.batch.micro_batch_rows is 8"
    )


def test_as_many_workers_as_rows_and_a_number_that_is_not_known_yet_are_fine() -> None:
    assert idle_workers(RuntimeSettings(engine="ray", workers=8), PARAMETERS) is None
    assert idle_workers(RuntimeSettings(engine="ray"), PARAMETERS) is None
