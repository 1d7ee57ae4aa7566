"""Every query of docs/sql.md runs and answers something, on a store that has what it asks for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.catalog.database import query, relations
from tasks.store.artifacts import Store
from tests.tasks.fake_runs import run_stages

if TYPE_CHECKING:
    from tests.tasks.fake_runs import Filled

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "sql.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, flags=re.DOTALL)
SHOWN = {
    sql
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("flows/*.py"))
    for sql in re.findall(r'(?:distill|{distill}) sql (?:--\S+ \S+ )?"([^"\\]+)', path.read_text())
}


def test_there_are_a_dozen_queries() -> None:
    assert len(QUERIES) >= 12


@pytest.mark.parametrize("sql", QUERIES, ids=lambda sql: " ".join(sql.split())[:50])
def test_a_query_answers(filled: Filled, sql: str) -> None:
    answer = query(filled.store, sql)
    assert answer.num_rows > 0 or "value IS NULL" in sql  # the made-up runs have no undefined metric
    for column in answer.column_names:
        if answer.num_rows and column not in {"error", "note", "tokens_per_second", "state_value", "top_k", "seed"}:
            assert answer[column].null_count < answer.num_rows, f"{column} is always NULL"


def test_a_run_that_was_repeated_changes_no_answer_over_runs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, _ = run_stages(store), run_stages(store, seed=1)
    over_runs = [sql for sql in QUERIES if "count(DISTINCT seed)" in sql or "AS gained" in sql]
    dropped = next(sql for sql in QUERIES if "FROM dropped" in sql)
    before = [query(store, sql).to_pylist() for sql in (*over_runs, dropped)]
    assert len(over_runs) == 2
    assert all(before)
    run_stages(store)  # all hits
    assert [query(store, sql).to_pylist() for sql in over_runs] == before[:-1]
    again = query(store, dropped).to_pylist()
    assert [row for row in again if row.get("run") == first.run_id] == [
        row for row in before[-1] if row.get("run") == first.run_id
    ]
    assert (
        sum(row["pairs"] for row in again if row.get("run") in (None, first.run_id))
        == query(store, f"SELECT count(*) AS n FROM dropped WHERE run = '{first.run_id}'")["n"][0].as_py()
    )


def test_every_relation_is_named() -> None:
    assert [name for name in relations() if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("sql", sorted(SHOWN))
def test_a_query_that_is_shown_elsewhere_runs(filled: Filled, sql: str) -> None:
    assert query(filled.store, sql).num_rows > 0
