"""A store with the runs that one wants to ask about: stages of the real names and schemas, with made-up contents.

`fill` makes seven runs: two that differ in the student's seed, one on the paper's data, one that failed, one that
crashed, one on running text, and a comparison of such. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.cleaning.pairs import DROPPED_SCHEMA
from data.cleaning.split_overlap import SPLIT_OVERLAP_SCHEMA
from data.cleaning.wen import OVERLAP_SCHEMA
from kd_core.metrics.bootstrap import Measured, Resamples
from kd_core.metrics.excess_error import excess_error
from kd_core.metrics.outputs import AGREEMENT, Outputs, References, evaluate_outputs
from kd_core.train.state import StepMetrics
from tasks.compute.measured import write_measured
from tasks.compute.training import write_log
from tasks.pairs.evaluate import PREDICTIONS
from tasks.pairs.exposure import EXCESS_ERROR
from tasks.pairs.llmr import ROLLOUTS
from tasks.pairs.score import OUTPUTS
from tasks.store.artifacts import Artifact, Store
from tasks.store.runs import RunRecord, StageRun
from tasks.store.stage import Build, Run, open_run, stage
from tests.tasks.fake_texts import run_grid, run_text

CHITCHAT = {"source": "chitchat"}
DAILYDIALOG = {"source": "files", "train": "corpora/cleaned_dd/train.csv"}
SOURCES = ["how are you ?", "what did you eat ?", "do you like dogs ?", "where do you live ?", "any plans ?", "hello !"]
REFERENCES = [
    "i am fine , thank you .",
    "some bread and cheese .",
    "yes , i love dogs .",
    "in a small town .",
    "no , not yet .",
    "hello there !",
]
# system -> its outputs, and the teacher's reward of each, summed over its tokens
WRITTEN: dict[str, tuple[list[str], list[float]]] = {
    "teacher": (
        ["i am fine , thank you .", "bread and cheese .", "i love dogs .", "in a town .", "not yet .", "hello !"],
        [6.0, 5.0, 4.5, 4.0, 3.0, 2.5],
    ),
    "pre_distilled": (
        ["i am fine .", "i do not know .", "i do not know .", "i do not know .", "i do not know .", "hello !"],
        [3.0, -1.0, -0.5, 0.5, 1.0, 2.5],
    ),
    "llmr": (
        ["i am fine , thank you .", "cheese and cheese and cheese", "yes , i love dogs .", "in a town .", "no .", "hi"],
        [6.0, -2.0, 5.0, 4.0, 1.5, 1.0],
    ),
}
# position -> token, its id, q-value and V of its state; the end of sequence has none after it
ROLLOUT = [("▁hello", 7, 4.0, 5.0), ("▁there", 9, 2.0, 3.5), ("</s>", 1, 3.0, 3.0)]
PAIRS = pa.schema([("id", pa.int64()), *((name, pa.string()) for name in ("dialogue", "source", "target"))])


@stage
def prepare(build: Build, name: str) -> None:
    """The pairs, what was dropped, and a number for the manifest."""
    dropped = [
        ("train", "d1", "hi", "a reply that is far too long to be kept", "target longer than 8 words"),
        ("train", "d2", "hey", "another reply that is far too long for us", "target longer than 8 words"),
        ("test", "d3", "it's", "so", "also a pair of train"),
    ]
    columns = DROPPED_SCHEMA.names
    rows = [dict(zip(columns, row, strict=True)) for row in dropped]
    pq.write_table(pa.Table.from_pylist(rows, schema=DROPPED_SCHEMA), build.dir / "dropped.parquet")
    pairs = [{"id": i, "dialogue": f"d{i}", "source": text, "target": REFERENCES[i]} for i, text in enumerate(SOURCES)]
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), build.dir / f"{split}.parquet")
    found = ("d1", "d3", 0.9, "dropped", "overlaps with its partner by more than 0.75", None)
    overlaps = [dict(zip(OVERLAP_SCHEMA.names, found, strict=True))]
    pq.write_table(pa.Table.from_pylist(overlaps, schema=OVERLAP_SCHEMA), build.dir / "overlaps.parquet")
    shares = [dict(zip(SPLIT_OVERLAP_SCHEMA.names, ("before", "test", "train", 10, 1, 0.1, 0.75), strict=True))]
    pq.write_table(pa.Table.from_pylist(shares, schema=SPLIT_OVERLAP_SCHEMA), build.dir / "split_overlaps.parquet")
    build.record(train_pairs=100, dropped_train=2)


@stage
def teacher(build: Build, corpus: Artifact) -> None:
    """A log of three updates."""
    _log(build, {"loss": 5.0, "grad_norm": 1.0, "tokens": 900.0}, {"validation_loss": 4.5})
    build.record(parameters=1000, validation_loss=4.5)


@stage
def score(build: Build, corpus: Artifact, teacher: Artifact) -> None:
    """Two shards of the teacher's outputs."""
    for shard in range(2):
        rows = [
            {"id": 2 * shard + i, "text": "yes .", "token_ids": [5, 4, 1], "log_prob": -1.5, "truncated": False}
            for i in range(2)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=OUTPUTS), build.dir / f"outputs-{shard:05d}.parquet")
    build.record(tokens=12, tokens_per_second=600.0, bytes_per_token=2.0)


@stage
def pre_distill(build: Build, corpus: Artifact, teacher: Artifact, outputs: Artifact, seed: int) -> None:
    """A log of three updates."""
    _log(build, {"loss": 6.0 + seed, "grad_norm": 1.0, "tokens": 500.0}, {"validation_loss": 5.5})


@stage
def llmr(build: Build, corpus: Artifact, teacher: Artifact, student: Artifact, seed: int, fails: bool) -> None:
    """A log, and one rollout token by token."""
    if fails:
        raise ValueError("llmr: loss is nan at step 3\nlower the learning rate of this stage")
    every = {"reward": 0.5, "gain": 2.5, "behaviour_nll": 1.0, "length": 3.0, "truncated": 0.0, "staleness": 0.0}
    every |= {"loss": -0.1, "grad_norm": 0.3, "tokens": 192.0, "max_ratio": 1.0}
    _log(build, every, {"validation_reward": 0.7 + seed, "validation_length": 3.0})
    pq.write_table(pa.Table.from_pylist(_rollout(), schema=ROLLOUTS), build.dir / "rollouts.parquet")


@stage
def evaluate(build: Build, corpus: Artifact, teacher: Artifact, students: Mapping[str, Artifact]) -> None:
    """Predictions, and the real metrics of them."""
    tables = {system: _predictions(system) for system in ("teacher", *students)}
    pq.write_table(pa.concat_tables(tables.values()), build.dir / "predictions.parquet")
    write_measured(build.dir, "test", {system: measured(system) for system in tables})


@stage
def exposure(build: Build, corpus: Artifact, teacher: Artifact, student: Artifact) -> None:
    """A curve of two lengths."""
    student_NL, teacher_NL = np.array([[1.0, 3.0], [2.0, 5.0]]), np.array([[1.0, 2.0], [2.0, 3.0]])
    rows = [
        {"length": each.length, "d_student": each.d_student, "d_teacher": each.d_teacher}
        | {name: getattr(each.value, name) for name in ("value", "low", "high", "n", "note")}
        for each in excess_error(student_NL, teacher_NL, Resamples(num_outputs=2, num_resamples=50))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=EXCESS_ERROR), build.dir / "excess_error.parquet")


@dataclass(frozen=True)
class Filled:
    """The ids of the runs in a filled store, and what each has made."""

    store: Store
    first: str
    second: str  # another seed: the first three stages are the first run's
    paper: str  # on the paper's data, with nothing in common
    failed: str  # in llmr, as a third seed
    crashed: str  # after prepare
    text: str  # running text, see fake_texts
    grid: str  # two methods on running text, with two seeds at two values of alpha
    artifacts: dict[str, dict[str, Artifact]]  # by run id and stage


def fill(store: Store) -> Filled:
    """Make the seven runs."""
    artifacts: dict[str, dict[str, Artifact]] = {}
    first = run_stages(store, artifacts=artifacts)
    second = run_stages(store, seed=1, artifacts=artifacts)
    paper = run_stages(store, name="llmr-dailydialog", dataset=DAILYDIALOG, artifacts=artifacts)
    failed = run_stages(store, seed=2, fails=True, artifacts=artifacts)
    crashed = record_crashed(store, artifacts[first.run_id]["prepare"])
    llmrs = first.run_id, second.run_id, paper.run_id, failed.run_id, crashed.run_id
    return Filled(store, *llmrs, run_text(store).run_id, run_grid(store).run_id, artifacts)


def run_stages(
    store: Store,
    *,
    name: str = "llmr-chitchat",
    dataset: Mapping[str, str] = CHITCHAT,
    seed: int = 0,
    fails: bool = False,
    artifacts: dict[str, dict[str, Artifact]] | None = None,
) -> Run:
    """One run of the pipeline's outline over the stages above; one that `fails` does so in llmr."""
    made: dict[str, Artifact] = {}
    parameters = {"dataset": dict(dataset), "method": {"kind": "llmr"}, "seed": seed}
    try:
        with open_run(store, name=name, parameters=parameters) as run:
            made["prepare"] = corpus = prepare(name=name)
            made["teacher"] = teacher_model = teacher(corpus=corpus)
            made["score"] = outputs = score(corpus=corpus, teacher=teacher_model)
            made["pre_distill"] = pre_distill(corpus=corpus, teacher=teacher_model, outputs=outputs, seed=seed)
            made["llmr"] = llmr(
                corpus=corpus, teacher=teacher_model, student=made["pre_distill"], seed=seed, fails=fails
            )
            students = {"pre_distilled": made["pre_distill"], "llmr": made["llmr"]}
            made["evaluate"] = evaluate(corpus=corpus, teacher=teacher_model, students=students)
            made["exposure"] = exposure.labelled("llmr")(corpus=corpus, teacher=teacher_model, student=made["llmr"])
    except ValueError:
        if not fails:
            raise
    if artifacts is not None:
        artifacts[run.run_id] = made
    return run


def record_crashed(store: Store, corpus: Artifact) -> RunRecord:
    """The record that a process killed after its first stage leaves behind."""
    record = RunRecord.start("llmr-chitchat", {"dataset": CHITCHAT, "method": {"kind": "llmr"}, "seed": 3})
    record.process_started = "of a process that is no more"
    record.stages.append(StageRun(corpus.stage, corpus.key, "hit", 0.01))
    record.save(store)
    return record


@cache
def measured(system: str) -> Measured:
    """A system's metrics on the six inputs."""
    written, rewards = WRITTEN[system]
    counts = _num_tokens(system)
    return evaluate_outputs(
        Outputs(
            predictions=written,
            num_tokens=counts,
            truncated=_truncated(system),
            reward_sum=rewards,
            reward_count=counts,
            agreement=_agreement(system),
        ),
        _references(),
    )


@cache
def _references() -> References:
    return References(REFERENCES, resamples=50, seed=0)


def _num_tokens(system: str) -> list[int]:
    return [len(text.split()) + 1 for text in WRITTEN[system][0]]


def _truncated(system: str) -> list[bool]:
    return [text.endswith("cheese") for text in WRITTEN[system][0]]


def _agreement(system: str) -> dict[str, list[float]]:
    """Of each token: the teacher's log-probability -0.5, its entropy 1, and KLs and overlap that tell systems apart."""
    kl = 0.1 * list(WRITTEN).index(system)
    of_token = {"log_prob": -0.5, "teacher_entropy": 1.0, "reverse_kl": kl, "forward_kl": 2 * kl, "overlap": 1.0 - kl}
    return {name: [of_token[name] * count for count in _num_tokens(system)] for name in AGREEMENT}


def _predictions(system: str) -> pa.Table:
    written, rewards = WRITTEN[system]
    columns: dict[str, list[Any]] = {
        "id": list(range(len(written))),
        "system": [system] * len(written),
        "source": SOURCES,
        "reference": REFERENCES,
        "prediction": written,
        "num_tokens": _num_tokens(system),
        "truncated": _truncated(system),
        "reward": rewards,
        **_agreement(system),
    }
    return pa.table(columns, schema=PREDICTIONS)


def _rollout() -> list[dict[str, Any]]:
    """R_t = q_t − V_{t+1}: 4 − 3.5 = 0.5, 2 − 3 = −1, 3 − 0 = 3. G_t: 2.5, 2, 3."""
    rewards, gains = (0.5, -1.0, 3.0), (2.5, 2.0, 3.0)
    return [
        {
            "step": 3,
            "rollout": 0,
            "id": 1,
            "position": t,
            "token": token,
            "token_id": token_id,
            "q_value": q_value,
            "value": value,
            "reward": rewards[t],
            "gain": gains[t],
            "log_prob": -0.5,
        }
        for t, (token, token_id, q_value, value) in enumerate(ROLLOUT)
    ]


def _log(build: Build, every_step: dict[str, float], at_the_end: dict[str, float]) -> None:
    rows = [StepMetrics(step, every_step | (at_the_end if step == 3 else {})) for step in (1, 2, 3)]
    write_log(build.dir / "training_log.parquet", rows)
