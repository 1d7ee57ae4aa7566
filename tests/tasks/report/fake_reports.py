"""Runs that a report must show and that `fake_runs` has not: comparisons, running text, and hostile texts.

Nothing is trained: stages of the real names write made-up numbers in the real schemas, so that a test says exactly what
is in the relations.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.train.state import StepMetrics
from tasks.compare import CELLS, COMPARISON, DIFFERENCES
from tasks.compute.measured import METRICS
from tasks.compute.training import write_log
from tasks.pairs.evaluate import PREDICTIONS
from tasks.pairs.exposure import EXCESS_ERROR
from tasks.pairs.llmr import ROLLOUTS
from tasks.store.artifacts import Store
from tasks.store.stage import Build, open_run, stage
from tests.tasks.fake_texts import evaluate as evaluate_text

Row = dict[str, Any]

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
METHODS = ("seqkd", "forward_kl", "reverse_kl", "js", "gkd", "minillm", "llmr")
WATCHED = ("minillm", "llmr")  # of the methods, those that look at what they write; the last collapses
SLOPES = {"seqkd": 2.0, "reverse_kl": 1.2, "llmr": 0.8}  # of the excess error
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


@stage
def compare(build: Build, kind: str) -> None:
    """A comparison's three files, and for a grid a warning."""
    cells = [row | {"system": row["method"].replace("-", "_"), "cell": cell} for cell, row in cells_of(kind).items()]
    values, differences = {"dad-dagger": _grid, "llmr": _methods}[kind]()
    for name, rows, schema in (
        ("comparison", values, COMPARISON),
        ("comparison_differences", differences, DIFFERENCES),
        ("comparison_cells", cells, CELLS),
    ):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), build.dir / f"{name}.parquet")
    if kind == "dad-dagger":
        build.warn(WARNING)


@stage
def dagger_train(build: Build, method: str, x: float, seed: int) -> None:
    """A log of 300 updates, and a warning that says a number of its own. Only from round 2 is there a method."""
    level = {"": 5, "next-token": 4, "dad-dagger": 3}[method] - x + seed
    rows = [StepMetrics(k, {"loss": level + 3 / k, "validation_loss": level + 2 / k}) for k in range(1, 301)]
    write_log(build.dir / "training_log.parquet", rows)
    build.warn(f"{seed + 50} % of the updates were large")


@stage
def divergence(build: Build, seed: int) -> None:
    """A log of ten updates."""
    write_log(build.dir / "training_log.parquet", [StepMetrics(k, {"loss": seed + 3 / k}) for k in range(1, 11)])


def looks(collapses: bool, start: float = 0.0) -> list[StepMetrics]:
    """A log of 40 updates with a look at the validation set at every tenth, the first before any of them."""
    rows = []
    for step in range(0, 41):
        done, values = step / 40, {} if step == 0 else {"loss": 3 - step / 40, "reward": -2 + step / 40}
        bad = done if collapses else 0.0
        if step == 0:
            values |= {"validation_text_log_prob": -1.5, "validation_text_teacher_entropy": 2.0}
        if step % 10 == 0:
            values |= {"validation_overlap": 0.5 + start + 0.2 * done - 0.5 * bad, "validation_log_prob": -3 + 2 * done}
            values |= {"validation_teacher_entropy": 2.5 - 2 * bad}
            values |= {"validation_reverse_kl": 2 - done, "validation_forward_kl": 2 - done + 2 * bad}
            for kind, more in (("", 0.0), ("sampled_", 2.0)):
                values |= {f"validation_{kind}reward": -2 + done - more / 4}
                values |= {f"validation_{kind}length": 20 - 10 * bad + more}
                values |= {f"validation_{kind}truncated": 0.0, f"validation_{kind}equal": 0.8 * bad / (1 + more)}
                values |= {f"validation_{kind}distinct_2": 0.7 - 0.6 * bad, f"validation_{kind}repetition": 0.3 * bad}
        rows.append(StepMetrics(step, values))
    return rows


ALARM = "after update 30: 60% of the greedy outputs are equal to another (0% at the start)"


@stage
def minillm(build: Build, collapses: bool, start: float) -> None:
    """A training that was watched, and its alarm."""
    write_log(build.dir / "training_log.parquet", looks(collapses, start))
    if collapses:
        build.warn(ALARM)


def run_watched(store: Store) -> str:
    """The id of a run whose student collapses."""
    with open_run(store, name="minillm-chitchat", parameters={"dataset": {"source": "chitchat"}}) as run:
        minillm(collapses=True, start=0.0)
    return run.run_id


@stage
def llmr(build: Build, texts: list[str], repeats: int) -> None:
    """Rollouts whose tokens are these texts."""
    rows = [
        dict.fromkeys(("q_value", "value", "reward", "gain", "log_prob"), 0.5 - place)
        | {"step": 10 * k, "rollout": 0, "id": k, "position": place, "token": text, "token_id": place}
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


@stage
def exposure(build: Build, slope: float) -> None:
    """An excess error that grows by so many per cent with each token."""
    rows = [
        {"length": k, "d_student": 1.0 + k, "d_teacher": 1.0, "value": slope * k, "low": slope * k - 2}
        | {"high": slope * k + 2, "n": 300, "note": ""}
        for k in range(1, 17)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXCESS_ERROR), build.dir / "excess_error.parquet")


def cells_of(kind: str) -> dict[str, Row]:
    """Where each cell of a comparison stands: two methods at five values of alpha, or all methods; three seeds each."""
    methods, values = {"dad-dagger": (("next-token", "dad-dagger"), ALPHAS), "llmr": (METHODS, (None,))}[kind]
    return {
        f"{method}, " + ("" if x is None else f"method.alpha={x:g}, ") + f"seed={seed}": {
            "method": method, "x_name": None if x is None else "alpha", "x": x, "seed": seed
        }
        for x in values
        for method in methods
        for seed in (0, 1, 2)
    }  # fmt: skip


def run_comparison(store: Store, kind: str, apart: float = 0.0) -> str:
    """The id of a comparison's run: `dad-dagger`, over alpha, or `llmr`, over methods, whose starts may be apart."""
    name = "dad-dagger-papers" if kind == "dad-dagger" else "llmr-chitchat"
    cells = cells_of(kind)
    parameters = {"run": name, "variants": {row["method"]: {} for row in cells.values()}}
    parameters |= {"seeds": [0, 1, 2]}
    with open_run(store, name=f"compare/{kind}", parameters=parameters) as run:
        run.record.dataset = {"source": "papers" if kind == "dad-dagger" else "chitchat"}
        for cell, row in 2 * list(cells.items()):  # built, then read
            system = row["method"].replace("-", "_")
            with run.serving(cell):
                if kind == "dad-dagger":
                    place = {"x": row["x"], "seed": row["seed"]}
                    first = dagger_train.labelled("1")(method="", **place)
                    students = {"round_1": first, system: dagger_train.labelled("2")(method=row["method"], **place)}
                    evaluate_text(students=students, seed=row["seed"], alpha=row["x"])
                else:
                    if row["method"] in WATCHED:
                        collapses = row["method"] == "llmr"
                        minillm(collapses=collapses, start=0.01 * row["seed"] + apart * collapses)
                    else:
                        divergence.labelled(row["method"])(seed=row["seed"])
                    exposure.labelled("pre_distilled")(slope=2.5 + 0.1 * row["seed"])  # shared by a seed's cells
                    if system in SLOPES:
                        exposure.labelled(system)(slope=SLOPES[system] + 0.1 * row["seed"])
        compare(kind=kind)
    return run.run_id


def run_hostile(store: Store, texts: list[str] = HOSTILE, repeats: int = 1) -> str:
    """The id of a run in which everything that can be text is one of these."""
    parameters = {"dataset": {"source": "chitchat"}, "teacher": {"name": texts[0]}, "note": dict(enumerate(texts))}
    with open_run(store, name="hostile", parameters=parameters) as run:
        llmr(texts=texts, repeats=repeats)
        evaluate(texts=texts, repeats=repeats)
    return run.run_id


def _grid() -> tuple[list[Row], list[Row]]:
    """Next-token distillation and DaD-DAgger over alpha, between an untrained student and a fine-tuned teacher."""
    levels = {"perplexity": (60.0, 1.0), "free_running_ce": (4.0, 0.1), "g_eval": (0.6, -0.02)}
    compared, apart = [], []
    for metric, (start, step) in levels.items():
        for place, alpha in enumerate(ALPHAS):
            ours, theirs = start + place * step, start + (place + 4) * step
            compared += [_compared("dad-dagger", metric, ours, alpha), _compared("next-token", metric, theirs, alpha)]
            apart.append(_apart("dad-dagger", "next-token", metric, ours - theirs, alpha))
        compared += [_compared("student", metric, start + 9 * step), _compared("teacher", metric, start - 2 * step)]
    return compared, apart


def _methods() -> tuple[list[Row], list[Row]]:
    """All methods on pairs, over three seeds: no setting is varied. In ROUGE-L they are too close to tell."""
    levels = {"bleu_2": (4.0, 0.2), "distinct_2": (30.0, -1.5), "reward": (-4.0, 0.1), "rouge_l": (20.0, 0.01)}
    compared = [
        _compared(method, metric, start + place * step)
        for metric, (start, step) in levels.items()
        for place, method in enumerate(("teacher", *METHODS))
    ]
    pairs = [(later, earlier) for i, later in enumerate(METHODS) for earlier in METHODS[:i]]
    apart = [
        _apart(*pair, metric, size * (METHODS.index(pair[0]) - METHODS.index(pair[1])))
        for metric, (_, size) in levels.items()
        for pair in pairs
    ]
    return compared, apart


def _compared(method: str, metric: str, value: float, x: float | None = None) -> Row:
    row: Row = {"method": method, "x_name": None if x is None else "alpha", "x": x, "split": "test"}
    row |= {"metric": metric, "value": value, "low": value - 0.05, "high": value + 0.05, "lowest": value - 0.02}
    return row | {"highest": value + 0.02, "seeds": 3, "n": 1000, "unit": "points", "note": ""}


def _apart(method: str, baseline: str, metric: str, value: float, x: float | None = None) -> Row:
    row: Row = {"method": method, "baseline": baseline, "x_name": None if x is None else "alpha", "x": x}
    row |= {"split": "test", "metric": metric, "value": value, "low": value - 0.25, "high": value + 0.25}
    p = 0.01 if abs(value) > 0.25 else 0.3
    return row | {
        "p": p,
        "p_corrected": 4 * p if p < 0.25 else 1.0,
        "n": 1000,
        "unit": "points",
        "seeds": 3,
        "note": "",
    }
