"""What stages that train have logged, for tests that compare runs."""

import pyarrow.parquet as pq

from tasks.store.artifacts import Store


def logs(store: Store) -> dict[tuple[str, int, str], float]:
    """What every stage that trains has logged: artifact, step and metric -> value."""
    return {
        (f"{each.stage}/{each.key}", row["step"], row["metric"]): row["value"]
        for each in store.artifacts()
        if (each.path / "training_log.parquet").exists()
        for row in pq.read_table(each.path / "training_log.parquet").to_pylist()
    }
