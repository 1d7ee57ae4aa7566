"""Every query of docs/sql.md runs and answers something, on a store that has what it asks for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.catalog.database import query, relations

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


def test_every_relation_is_named() -> None:
    assert [name for name in relations() if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("sql", sorted(SHOWN))
def test_a_query_that_is_shown_elsewhere_runs(filled: Filled, sql: str) -> None:
    assert query(filled.store, sql).num_rows > 0
