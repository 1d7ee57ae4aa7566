"""Runs on running text with made-up numbers: stages of the real names and schemas, and a real comparison of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.metrics.bootstrap import Measured, Resamples, measure_all
from kd_core.metrics.running_text import cross_entropy, free_running
from kd_core.train.state import StepMetrics
from tasks.compare import Cell, compare
from tasks.compute.measured import write_measured
from tasks.compute.training import write_log
from tasks.store.artifacts import Artifact, Store
from tasks.store.stage import Build, Run, open_run, stage
from tasks.text.aggregated_files import AGGREGATED
from tasks.text.evaluate import FREE_RUNNING, PREDICTIONS

TEXT = {"source": "papers"}
ROUNDS = 2
STEPS = 4  # of free running
STARTS = ["the cat sat on the", "a dog ran under the", "the bird sang over a"]
# system -> nats per token of the true text, and what each token of its own adds to it
LEVELS = {
    "teacher": (3.0, 0.01),
    "student": (4.0, 0.1),
    "round_1": (3.5, 0.09),
    "next_token": (3.4, 0.08),
    "dad_dagger": (3.4, 0.04),
}


@stage
def dagger_train(build: Build, number: int, alpha: float, seed: int) -> None:
    """A log of four updates."""
    rows = [StepMetrics(k, {"loss": 4 - alpha + 1 / (k + number), "grad_norm": 1.0 + seed}) for k in range(1, 5)]
    write_log(build.dir / "training_log.parquet", rows)


@stage
def dagger_aggregate(build: Build, student: Artifact, number: int) -> None:
    """Two trajectories of two steps; in the second the student's first token is not that of the text."""
    rows = [
        {"round": number, "trajectory": 10 * t, "step": k, "position": 10 * t + 4 + k, "context": [3, 1, 2, t + k]}
        | {"target": 5, "left": t == 1}
        for t in range(2)
        for k in (1, 2)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=AGGREGATED), build.dir / "aggregated-00000.parquet")


@stage
def evaluate(build: Build, students: Mapping[str, Artifact], seed: int, alpha: float) -> None:
    """The real metrics of made-up predictions: what a method of another alpha or seed does is a little different."""
    names, write = ["teacher", "student", *students], {}
    rounds = {"student": 0} | {name: number for number, name in enumerate(students, start=1)}
    rows = []
    for name in names:
        shift = 0.0 if name in ("teacher", "student") else 0.02 * seed - 0.1 * alpha
        found = _measured(name, shift)
        rows += _steps(name, rounds.get(name), found)
        whole = [each for each in found.metrics if "_step_" not in each.metric]
        write[name] = Measured(metrics=whole, samples={each.metric: found.samples[each.metric] for each in whole})
    write_measured(build.dir, "test", write)
    pq.write_table(pa.Table.from_pylist(rows, schema=FREE_RUNNING), build.dir / "free_running.parquet")
    written = [
        {"id": 100 * i, "system": name, "source": text, "reference": "mat", "prediction": f"{name} {seed} {alpha:g}"}
        | {"num_tokens": STEPS, "truncated": False}
        for name in names
        for i, text in enumerate(STARTS)
    ]
    pq.write_table(pa.Table.from_pylist(written, schema=PREDICTIONS), build.dir / "predictions.parquet")


def run_text(store: Store) -> Run:
    """A run of DaD-DAgger in two rounds."""
    parameters = {"dataset": TEXT, "method": {"kind": "dad_dagger", "alpha": 0.5}, "seed": 0}
    with open_run(store, name="dad-dagger-papers", parameters=parameters) as run:
        _run_method("dad_dagger", 0.5, 0)
    return run


def run_grid(store: Store) -> Run:
    """Two methods at two values of alpha with two seeds, compared."""
    variants = {"next-token": "next_token", "dad-dagger": "dad_dagger"}
    parameters = {"run": "dad-dagger-papers", "sweep": "method.alpha", "values": [0.0, 1.0], "seeds": [0, 1]}
    cells, results = [], {}
    with open_run(store, name="compare/alpha", parameters=parameters) as run:
        run.record.dataset = TEXT
        for x in (0.0, 1.0):
            for variant, method in variants.items():
                for seed in (0, 1):
                    cell = Cell(name=f"{variant}, method.alpha={x:g}, seed={seed}", variant=variant, seed=seed, x=x)
                    with run.serving(cell.name):
                        results[cell.name] = _run_method(method, x, seed)
                    cells.append(cell)
        compare(results=results, cells=tuple(cells), x_name="alpha")
    return run


def _run_method(method: str, alpha: float, seed: int) -> Artifact:
    students = {}
    for number in range(1, ROUNDS + 1):
        name = method if number == ROUNDS else f"round_{number}"
        students[name] = dagger_train.labelled(str(number))(number=number, alpha=alpha, seed=seed)
        if number < ROUNDS and method == "dad_dagger":
            dagger_aggregate.labelled(str(number))(student=students[name], number=number)
    return evaluate(students=students, seed=seed, alpha=alpha)


def _measured(system: str, shift: float) -> Measured:
    """40 predictions and 16 starts in 8 blocks of text."""
    rng = np.random.default_rng(list(LEVELS).index(system))
    start, slope = LEVELS[system]
    noise_W, noise_BT = rng.normal(scale=0.1, size=40), rng.normal(scale=0.1, size=(16, STEPS))
    nll_BT = start + shift + slope * np.arange(STEPS) + noise_BT
    left_BT = rng.random((16, STEPS)) < 0.3 + 0.1 * np.arange(STEPS)
    measures = cross_entropy(start + shift + noise_W, np.arange(40) // 5, 8)
    measures += free_running(nll_BT, left_BT, np.arange(16) // 2, 8)
    return measure_all(measures, Resamples(num_outputs=8, num_resamples=50, seed=0))


def _steps(system: str, number: int | None, found: Measured) -> list[dict[str, object]]:
    values = {each.metric: each for each in found.metrics}
    rows = []
    for step in range(STEPS):
        value, left = values[f"free_running_ce_step_{step}"], values[f"left_text_step_{step}"]
        place = {"system": system, "round": number, "step": step, "left_text": left.value}
        rows.append(place | {"value": value.value, "low": value.low, "high": value.high, "n": value.n})
    return rows
