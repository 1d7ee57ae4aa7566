"""What several folders of tests share."""

from __future__ import annotations

import atexit
import io
import os
import sys
from typing import TYPE_CHECKING

import pytest
from absl import logging as absl_logging
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.tasks.fake_runs import Filled

# Read when torch is imported, here and in what tests start: tensors this small only lose by being shared out, and
# pytest's workers would fight for the cores.
os.environ["OMP_NUM_THREADS"] = "1"

# How long an example takes depends on what else this machine does.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# rouge-score brings absl's log handler, which closes the stream that it began with whenever Prefect sets up logging: in
# a test that would be what pytest captures standard error with.
absl_logging.get_absl_handler().python_handler.stream = io.StringIO()


@atexit.register
def _last_word_is_pytests() -> None:
    """DuckDB's binding counts what is left of it when Python ends, below the summary: nobody reads that there."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A store with seven made-up runs, in a folder with a quote, spaces and a bracket in its name. To be read only."""
    from tasks.store.artifacts import Store
    from tests.tasks.fake_runs import fill

    return fill(Store(tmp_path_factory.mktemp("it's a [quoted] path")))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a CUDA device where there is none."""
    if item.get_closest_marker("cuda") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
