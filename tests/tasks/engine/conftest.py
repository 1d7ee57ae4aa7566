"""A cluster of two nodes, played on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

SOON = {  # a node's death is known in seconds, not in half a minute
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 4,
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": SOON})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()
