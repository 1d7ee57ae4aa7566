"""What several folders of tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.tasks.fake_runs import Filled


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A store with seven made-up runs, in a folder with a quote, spaces and a bracket in its name. To be read only."""
    from tasks.store import Store
    from tests.tasks.fake_runs import fill

    return fill(Store(tmp_path_factory.mktemp("it's a [quoted] path")))
