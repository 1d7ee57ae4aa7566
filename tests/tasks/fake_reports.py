"""Runs that a report must show and that `fake_runs` has not: comparisons, running text, and hostile texts.

Nothing is trained, but everything goes through real stages, Parquet files and SQL. The relations of comparisons and of
running text are defined here over the files of these stages, so that a test says exactly what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd_core.training import StepMetrics
from tasks.evaluate import METRICS, PREDICTIONS
from tasks.llmr import ROLLOUTS
from tasks.relations import EMPTY, TABLES
from tasks.stage import Build, open_run, stage
from tasks.store import Store
from tasks.training import write_log

Row = dict[str, Any]

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
METHODS = ("seqkd", "kl", "rkl", "js", "gkd", "minillm", "llmr")
WARNING = "the teacher is no better than the student: 4.97 against 4.78 nats a token"
HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "'; DROP TABLE runs; --",
    "</script></style></textarea><!-- ",
    "\u202egnp.exe\u202c \u2066",
    "bell \x07 escape \x1b[31m null \x00 delete \x7f next line \x85",
    "👩‍👩‍👧‍👦 e\u0301 שלום مرحبا",
    "javascript:alert(1) &lt;b&gt; &amp; ]]>",
]
_BOUNDS = "value DOUBLE, low DOUBLE, high DOUBLE, n BIGINT"
COLUMNS = {  # of the relations, without the run that the catalogue adds
    "excess_error": f"cell VARCHAR, method VARCHAR, length BIGINT, d_student DOUBLE, d_teacher DOUBLE, {_BOUNDS}",
    "comparison": "name VARCHAR, method VARCHAR, x_name VARCHAR, x DOUBLE, split VARCHAR, metric VARCHAR, "
    "value DOUBLE, low DOUBLE, high DOUBLE, lowest DOUBLE, highest DOUBLE, seeds BIGINT, n BIGINT, unit VARCHAR, "
    "note VARCHAR",
    "comparison_differences": "method VARCHAR, baseline VARCHAR, x_name VARCHAR, x DOUBLE, split VARCHAR, "
    "metric VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, p DOUBLE, p_corrected DOUBLE, n BIGINT, unit VARCHAR, "
    "note VARCHAR",
    "dagger_rounds": "cell VARCHAR, round BIGINT, step BIGINT, metric VARCHAR, value DOUBLE, n BIGINT",
    "free_running": f"cell VARCHAR, method VARCHAR, step BIGINT, {_BOUNDS}",
}


@contextmanager
def relations_defined() -> Iterator[None]:
    """The relations above over the files of `fake_comparison`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, columns in COLUMNS.items():
            listed = ", ".join(f"f.{each.split()[0]}" for each in columns.split(", "))
            patch.setitem(TABLES, name, ("fake_comparison", f"{name}.parquet", f"s.run, {listed}"))
            patch.setitem(EMPTY, name, f"run VARCHAR, {columns}")
        yield


@stage
def fake_comparison(build: Build, kind: str) -> None:
    """A file for every relation above, and for a grid a warning."""
    for name, rows in {"dad-dagger": _grid, "llmr": _methods}[kind]().items():
        pq.write_table(pa.Table.from_pylist(rows), build.dir / f"{name}.parquet")
    if kind == "dad-dagger":
        build.warn(WARNING)


@stage
def train(build: Build, cell: int) -> None:
    """A log of 300 updates."""
    rows = [StepMetrics(k, {"loss": 5 - cell + 3 / k, "validation_loss": 4 + 2 / k}) for k in range(1, 301)]
    write_log(build.dir / "training_log.parquet", rows)


@stage
def llmr(build: Build, texts: list[str], repeats: int) -> None:
    """Rollouts whose tokens are these texts."""
    rows = [
        dict.fromkeys(("q_value", "value", "reward", "gain", "log_prob"), 0.5 - place)
        | {"step": 10 * k, "id": k, "position": place, "token": text, "token_id": place}
        for k in range(repeats)
        for place, text in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=ROLLOUTS), build.dir / "rollouts.parquet")
    for text in texts:
        build.warn(text)


@stage
def evaluate(build: Build, texts: list[str], repeats: int) -> None:
    """Predictions that are these texts, of two systems with hostile names, and a metric that is undefined."""
    systems = ("llmr", texts[0])
    predictions = [
        {"id": k * len(texts) + i, "system": name, "source": text, "reference": text, "prediction": text}
        | {"num_tokens": len(text), "truncated": i == 0, "reward": -1.0}
        for name in systems
        for k in range(repeats)
        for i, text in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(predictions, schema=PREDICTIONS), build.dir / "predictions.parquet")
    none = {"value": None, "low": None, "high": None, "n": len(texts), "unit": "%", "note": "no <words> at all"}
    metrics = [{"system": name, "split": "test", "metric": "bleu_2", **none} for name in systems]
    pq.write_table(pa.Table.from_pylist(metrics, schema=METRICS), build.dir / "metrics.parquet")


def run_comparison(store: Store, kind: str) -> str:
    """The id of a comparison's run: `dad-dagger`, over alpha, or `llmr`, over methods."""
    parameters = {"dataset": {"source": "papers" if kind == "dad-dagger" else "chitchat"}, "seeds": [0, 1, 2]}
    with open_run(store, name=f"compare-{kind}", parameters=parameters) as run:
        for cell in range(3):
            run.cell = f"seed {cell}"
            train.labelled("1")(cell=cell)
        run.cell = ""
        fake_comparison(kind=kind)
    return run.run_id


def run_hostile(store: Store, texts: list[str] = HOSTILE, repeats: int = 1) -> str:
    """The id of a run in which everything that can be text is one of these."""
    parameters = {"dataset": {"source": "chitchat"}, "teacher": {"name": texts[0]}, "note": dict(enumerate(texts))}
    with open_run(store, name="hostile", parameters=parameters) as run:
        llmr(texts=texts, repeats=repeats)
        evaluate(texts=texts, repeats=repeats)
    return run.run_id


def _grid() -> dict[str, list[Row]]:
    """Next-token distillation and DaD-DAgger over alpha, between an untrained student and a fine-tuned teacher."""
    levels = {"perplexity": (60.0, 1.0), "free_running_cross_entropy": (4.0, 0.1), "g_eval": (0.6, -0.02)}
    compared, apart = [], []
    for metric, (start, step) in levels.items():
        for place, alpha in enumerate(ALPHAS):
            ours, theirs = start + place * step, start + (place + 4) * step
            compared += [_compared("dad_dagger", metric, ours, alpha), _compared("next_token", metric, theirs, alpha)]
            apart.append(_apart("dad_dagger", "next_token", metric, ours - theirs, alpha))
        compared += [_compared("student", metric, start + 9 * step), _compared("teacher", metric, start - 2 * step)]
    steps = range(1, 21)
    free = [
        {"cell": "", "method": method, "step": k, "value": 3 + slope * k, "low": 2.9 + slope * k, "n": 500}
        | {"high": 3.1 + slope * k}
        for method, slope in (("teacher", 0.01), ("next_token", 0.08), ("dad_dagger", 0.04))
        for k in steps
    ]
    rounds = [
        {"cell": "", "round": r, "step": k, "metric": "left_text", "value": 1 - 0.9**k / r, "n": 500}
        for r in (1, 2, 3)
        for k in steps
    ]
    rounds += [
        {"cell": "", "round": r, "step": None, "metric": "validation_loss", "value": 4 - 0.1 * r, "n": 500}
        for r in (1, 2, 3)
    ]
    return {"comparison": compared, "comparison_differences": apart, "free_running": free, "dagger_rounds": rounds}


def _methods() -> dict[str, list[Row]]:
    """All methods on pairs, over three seeds: no setting is varied."""
    compared = [
        _compared(method, metric, start + place * step)
        for metric, start, step in (("bleu_2", 4.0, 0.2), ("distinct_2", 30.0, -1.5), ("reward", -4.0, 0.1))
        for place, method in enumerate(("teacher", *METHODS))
    ]
    pairs = [(later, earlier) for i, later in enumerate(METHODS) for earlier in METHODS[:i]]
    apart = [
        _apart(*pair, metric, size * (METHODS.index(pair[0]) - METHODS.index(pair[1])))
        for metric, size in (("bleu_2", 0.2), ("distinct_2", -1.5), ("reward", 0.1))
        for pair in pairs
    ]
    lengths = [
        {"cell": "", "method": method, "length": k, "d_student": 1.0 + k, "d_teacher": 1.0, "value": slope * k}
        | {"low": slope * k - 2, "high": slope * k + 2, "n": 300}
        for method, slope in (("seqkd", 2.0), ("llmr", 0.8))
        for k in range(1, 17)
    ]
    return {"comparison": compared, "comparison_differences": apart, "excess_error": lengths}


def _compared(method: str, metric: str, value: float, x: float | None = None) -> Row:
    row: Row = {"name": "compare", "method": method, "x_name": None if x is None else "alpha", "x": x, "split": "test"}
    row |= {"metric": metric, "value": value, "low": value - 0.05, "high": value + 0.05, "lowest": value - 0.02}
    return row | {"highest": value + 0.02, "seeds": 3, "n": 1000, "unit": "points", "note": ""}


def _apart(method: str, baseline: str, metric: str, value: float, x: float | None = None) -> Row:
    row: Row = {"method": method, "baseline": baseline, "x_name": None if x is None else "alpha", "x": x}
    row |= {"split": "test", "metric": metric, "value": value, "low": value - 0.25, "high": value + 0.25}
    return row | {"p": 0.01, "p_corrected": 0.04, "n": 1000, "unit": "points", "note": ""}
