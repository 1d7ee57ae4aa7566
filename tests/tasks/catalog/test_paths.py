"""results.duckdb in folders whose names mean something to DuckDB."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.catalog.database import build_catalog, query
from tasks.store.artifacts import Store
from tests.tasks.fake_runs import Filled


@pytest.mark.parametrize(("name", "matched"), [("a[1]", "a1"), ("run*", "run1")])
def test_a_folder_named_like_a_pattern_is_read_and_no_other(
    name: str, matched: str, filled: Filled, tmp_path: Path
) -> None:
    counted = {}
    for each in (name, matched, "plain"):
        shutil.copytree(filled.store.root, tmp_path / each)
    for path in (tmp_path / matched).rglob("*.parquet"):
        path.write_bytes(b"not to be read")
    for each in (name, "plain"):
        store = Store(tmp_path / each)
        build_catalog(store)
        tables = ("metrics", "predictions", "training_log")
        counted[each] = [query(store, f"select count(*) as n from {table}").to_pylist() for table in tables]
    assert counted[name] == counted["plain"]
