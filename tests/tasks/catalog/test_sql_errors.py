"""What is said of a query that cannot be answered: the nearest column, of the relations that it asks."""

from collections.abc import Iterator

import duckdb
import pytest

from tasks.catalog.sql_errors import explain, single

RELATIONS = ["runs", "metrics", "stages"]


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE runs (run TEXT, name TEXT, seed BIGINT)")
        connection.execute("CREATE TABLE metrics (run TEXT, method TEXT, metric TEXT, value DOUBLE)")
        connection.execute("CREATE TABLE stages (run TEXT, stage TEXT)")
        yield connection


METRICS = "metrics has: run, method, metric, value"


@pytest.mark.parametrize(
    ("sql", "what", "there_is"),
    [
        ("select methd from metrics", "there is no column methd in metrics; did you mean method?", METRICS),
        ("SELECT m.VALU FROM Metrics m", "there is no column VALU in metrics; did you mean value?", METRICS),
        ("from metrics where zzzz = 'runs'", "there is no column zzzz in metrics", METRICS),
        ("select * exclude (valeu) from metrics", "there is no column valeu in metrics; did you mean value?", METRICS),
        (
            "select sed from metrics join runs using (run)",
            "there is no column sed in runs or metrics; did you mean seed?",
            f"runs has: run, name, seed; {METRICS}",
        ),
        (
            "with t as (select method from metrics) select metric from t",
            'Binder Error: Referenced column "metric" not found in FROM clause!',
            METRICS,
        ),
        (
            "from metrcs",
            "Catalog Error: Table with name metrcs does not exist; did you mean metrics?",
            "the relations are: runs, metrics, stages",
        ),
        (
            "slect",
            'Parser Error: syntax error at or near "slect"',
            "the relations are: runs, metrics, stages",
        ),
        (
            "select nothing",
            'Binder Error: Referenced column "nothing" was not found because the FROM clause is missing',
            "the relations are: runs, metrics, stages",
        ),
    ],
)
def test_two_lines_what_is_wrong_and_what_there_is(
    connection: duckdb.DuckDBPyConnection, sql: str, what: str, there_is: str
) -> None:
    with pytest.raises(duckdb.Error) as caught:
        connection.sql(sql)
    assert explain(connection, sql, caught.value, RELATIONS).splitlines() == [what, there_is]


@pytest.mark.parametrize("sql", ["SELECT 1", "SELECT ';' -- two; three", "/* one; */ SELECT 1;;", "", "-- nothing"])
def test_one_query_is_taken_as_it_is(sql: str) -> None:
    assert single(sql) == sql


def test_of_several_queries_none_is_answered() -> None:
    with pytest.raises(ValueError, match=r"^one query at a time, got 2\nleave out all but one"):
        single("SELECT 1; SELECT 2;")
