"""The stage `evaluate` of running text: metrics, differences and free running step by step, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.metrics.bootstrap import Measure, Measured, MetricValue, Resamples, measure_all
from kd_core.metrics.g_eval.reply import Verdict
from kd_core.metrics.g_eval.scores import g_eval_shares, no_g_eval, normalised_g_eval, windows_to_judge
from kd_core.metrics.running_text import block_numbers, cross_entropy, free_running, in_blocks
from kd_core.models.loading import load_tokenizer
from tasks.compute.measured import write_measured
from tasks.compute.teacher_check import warn_if_no_better
from tasks.judge.settings import JudgeSettings
from tasks.settings import part_of
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage
from tasks.text.free_run import FreeRunSettings, HeldOutSettings
from tasks.text.outputs import Continuations

FREE_RUNNING = pa.schema(
    [
        ("system", pa.string()),
        ("round", pa.int32()),  # of training that it has had; NULL for the teacher
        ("step", pa.int32()),  # tokens of its own that the system has written before
        *((name, pa.float64()) for name in ("value", "low", "high")),  # cross-entropy, nats
        ("left_text", pa.float64()),  # how often it writes another token than the text has at this step, in %
        ("n", pa.int64()),
    ]
)
PREDICTIONS = pa.schema(
    [
        ("id", pa.int64()),  # where in the text the context starts
        ("system", pa.string()),
        ("source", pa.string()),  # the end of the context
        ("reference", pa.string()),
        ("prediction", pa.string()),
        ("num_tokens", pa.int32()),
        ("truncated", pa.bool_()),  # continuations have no end to miss
        ("reward", pa.float64()),  # and no reward
    ]
)
SHOWN, SHOWN_CONTEXT = 200, 60  # continuations that are kept as text, and tokens of context before them


@dataclass(frozen=True, kw_only=True)
class TextEvaluationSettings(HeldOutSettings):
    """How systems are compared on held-out text; intervals are ours. `seed` is of free running and of the bootstrap."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    rounds: bool = True  # whether the student of each round is evaluated too
    resamples: int = 1000  # of the bootstrap behind the 95 % intervals
    block: int = 128  # tokens of text that are resampled together
    judge: JudgeSettings | None = None  # of the continuations, by G-Eval; None = they are not judged

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("resamples", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def free_run(self, context: int) -> FreeRunSettings:
        """The settings of `free_run`."""
        return part_of(self, FreeRunSettings, context=context)


@stage
def evaluate(
    build: Build,
    corpus: Artifact,
    systems: Mapping[str, Artifact],
    judged: Mapping[str, Artifact],
    why_not_judged: str,
    rounds: Mapping[str, int],
    resamples: int,
    block: int,
    seed: int,
) -> None:
    """Write metrics, differences, replicates, free_running and predictions.parquet.

    systems, judged: what `free_run` wrote and `g_eval` judged, by name. rounds: system → rounds of training that it has
    had, 0 for the untrained student; the teacher is not in it. Says so where the teacher is no better than a student.
    """
    found = {
        name: _measured(each, judged.get(name), why_not_judged, resamples, block, seed)
        for name, each in systems.items()
    }
    split = str(_settings(next(iter(systems.values())))["split"])
    whole = {name: _only(each, lambda metric: "_step_" not in metric) for name, each in found.items()}
    write_measured(build.dir, split, whole)
    rows = [row | {"round": rounds.get(name)} for name, each in found.items() for row in _steps(name, each)]
    pq.write_table(pa.Table.from_pylist(rows, schema=FREE_RUNNING), build.dir / "free_running.parquet")
    pq.write_table(continuations(corpus, systems), build.dir / "predictions.parquet")
    losses = {name: float(each.samples["cross_entropy"][0]) for name, each in whole.items()}
    warn_if_no_better(build, losses.pop("teacher"), losses, "held-out text")


def continuations(corpus: Artifact, systems: Mapping[str, Artifact]) -> pa.Table:
    """What each system wrote, as text, from starts that are evenly spread over the split."""
    tokenizer = load_tokenizer(corpus.path / "tokenizer")
    rows = []
    for name, artifact in systems.items():
        found = Continuations.of(artifact)
        kept = windows_to_judge(len(found.start_B), SHOWN)
        for row, texts in zip(kept, found.texts(corpus, tokenizer, kept, SHOWN_CONTEXT), strict=True):
            source, prediction, reference = texts
            place = {"id": int(found.start_B[row]), "system": name, "num_tokens": found.token_BT.shape[1]}
            rows.append(
                place | {"source": source, "reference": reference, "prediction": prediction, "truncated": False}
            )
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def _measured(
    written: Artifact, judged: Artifact | None, why_not: str, resamples: int, block: int, seed: int
) -> Measured:
    """All metrics of a system, on the same resamples of blocks of text for every system."""
    windows, found = pq.read_table(written.path / "windows.parquet"), Continuations.of(written)
    position_W = windows["position"].to_numpy().astype(np.int64)
    first = int(position_W.min())
    predicted_B = found.start_B + found.context  # the position that step 0 predicts
    block_W, block_B = (block_numbers(each, block, first) for each in (position_W, predicted_B))
    num_blocks = int(max(block_W.max(), block_B.max())) + 1
    measures = cross_entropy(windows["nll"].to_numpy().astype(np.float64), block_W, num_blocks)
    measures += free_running(found.nll_BT, found.left_BT, block_B, num_blocks)
    if judged is not None:
        measures += [in_blocks(each, block_B, num_blocks) for each in _judged(judged, found)]
    measured = measure_all(measures, Resamples(num_outputs=num_blocks, num_resamples=resamples, seed=seed))
    if judged is not None:
        return measured
    absent = no_g_eval(why_not, num_blocks)[:1]
    undefined = {each.metric: np.full(resamples + 1, np.nan) for each in absent}
    return Measured(metrics=measured.metrics + absent, samples=measured.samples | undefined)


def _judged(artifact: Artifact, found: Continuations) -> list[Measure]:
    """G-Eval over all starts; those that nobody judged have no score."""
    rows = pq.read_table(artifact.path / "verdicts.parquet").to_pylist()
    by_start = {(row.pop("continuation"), row.pop("start")): Verdict(**row) for row in rows}
    ours, true = ([by_start.get((who, int(start))) for start in found.start_B] for who in ("system", "true"))
    scores = ([None if each is None else each.score for each in verdicts] for verdicts in (ours, true))
    return [*normalised_g_eval(*scores), *g_eval_shares(ours)]


def _settings(artifact: Artifact) -> dict[str, Any]:
    settings: dict[str, Any] = artifact.manifest().key_record["settings"]["settings"]
    return settings


def _only(measured: Measured, wanted: Any) -> Measured:
    kept = [each for each in measured.metrics if wanted(each.metric)]
    return Measured(metrics=kept, samples={each.metric: measured.samples[each.metric] for each in kept})


def _steps(system: str, measured: Measured) -> list[dict[str, Any]]:
    by_name: dict[str, MetricValue] = {each.metric: each for each in measured.metrics}
    number = sum(name.startswith("free_running_ce_step_") for name in by_name)
    rows = []
    for step in range(number):
        value, left = by_name[f"free_running_ce_step_{step}"], by_name[f"left_text_step_{step}"]
        numbers = {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
        rows.append({"system": system, "step": step, "left_text": left.value} | numbers)
    return rows
