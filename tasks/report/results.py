"""What a report asks the results: SQL about one run, where an absent relation answers like an empty one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tasks.catalog import database as catalog
from tasks.report.names import REFERENCE_SYSTEMS, styles
from tasks.store.artifacts import Store
from tasks.store.runs import RunRecord

Row = dict[str, Any]

MOST_NAMES = 12  # of stages, in one line

# a table that was made by a join has no order of its own
CELLS = """
SELECT c.* FROM comparison_cells c
JOIN (SELECT run, cell, min(position) AS place FROM stages GROUP BY run, cell) s ON s.run = c.run AND s.cell = c.cell
WHERE c.run = $run ORDER BY place
"""

# of an artifact that is damaged, and so left out, `left_out` says so
DELETED = """
SELECT CASE WHEN label = '' THEN stage ELSE stage || '[' || label || ']' END AS name, key
FROM (FROM stages ANTI JOIN left_out USING (stage, key)) WHERE run = $run AND built IS NULL ORDER BY position
"""


@dataclass(frozen=True)
class Results:
    """results.duckdb, about one run. All answers are of one moment."""

    query: Callable[[str], Any]  # SQL -> an Arrow table
    run: str

    def ask(self, relation: str, sql: str) -> list[Row]:
        """The rows of a query on `relation`, where `$run` is the run's id; none if there is no such relation.

        Raises ValueError in one line for a query that DuckDB refuses.
        """
        if relation not in self._known:
            return []
        rows: list[Row] = self.query(sql.replace("$run", literal(self.run))).to_pylist()
        return rows

    @cached_property
    def record(self) -> Row:
        """The run's row of `runs`."""
        return self.ask("runs", "FROM runs WHERE run = $run")[0]

    @cached_property
    def compares(self) -> bool:
        """Whether the run is a comparison: several methods, or several values of a setting, on shared stages."""
        return bool(self.ask("comparison", "SELECT 1 FROM comparison WHERE run = $run LIMIT 1"))

    @cached_property
    def cells(self) -> list[Row]:
        """The runs of a comparison, in its order: cell, method, x_name, x, seed, system."""
        return self.ask("comparison_cells", CELLS)

    @cached_property
    def references(self) -> frozenset[str]:
        """What students are measured against: in a comparison all systems that are none of its methods."""
        if not self.cells:
            return frozenset(REFERENCE_SYSTEMS)
        compared = self.ask("comparison", "SELECT DISTINCT method FROM comparison WHERE run = $run")
        return frozenset(row["method"] for row in compared) - {row["method"] for row in self.cells}

    @cached_property
    def styles(self) -> dict[str, int]:
        """A colour, dash and marker for each system, the same all over the page."""
        tables = [("comparison", "SELECT method"), ("metrics", "SELECT method")]  # in their own order
        views = [(name, "SELECT DISTINCT method") for name in ("predictions", "excess_error", "free_running")]
        rows = [
            row for name, what in (*tables, *views) for row in self.ask(name, f"{what} FROM {name} WHERE run = $run")
        ]
        methods = [cell["method"] for cell in self.cells]
        measured_by = sorted(self.references, key=lambda name: (name != "teacher", name)) if methods else []
        return styles([*measured_by, *methods, *(row["method"] for row in rows)])

    @cached_property
    def deleted(self) -> str:
        """The stages of the run whose artifacts are in the store no more, in its order; empty where all are there."""
        rows = self.ask("stages", DELETED)
        names = list(dict.fromkeys(f"{row['name']} {row['key'][:8]}" for row in rows))
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        return ", ".join(names[:MOST_NAMES]) + more

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(catalog.relations())


@contextmanager
def results_of(store: Store, run: str, ending: RunRecord | None = None) -> Iterator[Results]:
    """The results about a run, brought up to date. Raises ValueError if there is no such run."""
    with catalog.questions(store, ending=ending) as ask:
        results = Results(ask, run)
        if not results.ask("runs", "SELECT 1 FROM runs WHERE run = $run"):
            raise ValueError(f"there is no run {run}\n`distill status` lists the runs")
        yield results


def literal(text: str) -> str:
    """A text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"
