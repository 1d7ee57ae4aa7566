"""The stage `evaluate` of running text: metrics, differences and free running step by step, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.metrics.bootstrap import Measured, MetricValue, Resamples, measure_all
from kd_core.metrics.running_text import block_numbers, cross_entropy, free_running
from kd_core.models import load_tokenizer
from tasks.free_run import FreeRunSettings
from tasks.measured import write_measured
from tasks.stage import Build, stage
from tasks.store import Artifact
from tasks.tokens import read_tokens

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
class TextEvaluationSettings:
    """How systems are compared on held-out text. Defaults: the paper's; intervals are ours."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    split: Literal["validation", "test"] = "test"
    horizon: int = 10
    window_stride: int = 1  # tokens between two windows whose next token is predicted
    start_stride: int = 1  # tokens between two starts of free running
    temperature: float = 1.0
    rounds: bool = True  # whether the student of each round is evaluated too
    resamples: int = 1000  # of the bootstrap behind the 95 % intervals
    block: int = 128  # tokens of text that are resampled together
    seed: int = 0  # of the bootstrap, and of free running

    def __post_init__(self) -> None:
        if self.split not in ("validation", "test"):
            raise ValueError(f"split must be validation or test, got {self.split!r}")
        for name in ("horizon", "window_stride", "start_stride", "resamples", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def free_run(self, context: int) -> FreeRunSettings:
        """What each system is asked."""
        return FreeRunSettings(
            split=self.split,
            context=context,
            horizon=self.horizon,
            window_stride=self.window_stride,
            start_stride=self.start_stride,
            temperature=self.temperature,
            seed=self.seed,
        )


@stage
def evaluate(
    build: Build,
    corpus: Artifact,
    systems: Mapping[str, Artifact],
    rounds: Mapping[str, int],
    resamples: int,
    block: int,
    seed: int,
) -> None:
    """Write metrics, differences, replicates, free_running and predictions.parquet.

    rounds: system → rounds of training that it has had, 0 for the untrained student; the teacher is not in it. Says
    so where the teacher is no better than a student.
    """
    found = {name: _measured(artifact, resamples, block, seed) for name, artifact in systems.items()}
    split = str(_settings(next(iter(systems.values())))["split"])
    whole = {name: _only(each, lambda metric: "_step_" not in metric) for name, each in found.items()}
    write_measured(build.dir, split, whole)
    rows = [row | {"round": rounds.get(name)} for name, each in found.items() for row in _steps(name, each)]
    pq.write_table(pa.Table.from_pylist(rows, schema=FREE_RUNNING), build.dir / "free_running.parquet")
    pq.write_table(continuations(corpus, split, systems), build.dir / "predictions.parquet")
    _warn_if_no_better(build, whole)


def continuations(corpus: Artifact, split: str, systems: Mapping[str, Artifact]) -> pa.Table:
    """What each system wrote from some of the starts, spread over the text, as text."""
    tokenizer, text_N = load_tokenizer(corpus.path / "tokenizer"), read_tokens(corpus, split)
    tables = []
    for name, artifact in systems.items():
        steps = pq.read_table(artifact.path / "steps.parquet", columns=["start", "step", "token_id"])
        horizon, context = int(np.max(steps["step"].to_numpy())) + 1, _settings(artifact)["context"]
        written_BT = steps["token_id"].to_numpy().reshape(-1, horizon)
        starts_B = steps["start"].to_numpy()[::horizon]
        kept = np.unique(np.linspace(0, len(starts_B) - 1, min(SHOWN, len(starts_B))).astype(int))

        def decoded(rows: Any) -> list[str]:
            texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
            return texts

        first_B = starts_B[kept] + context
        columns = {
            "id": starts_B[kept],
            "system": [name] * len(kept),
            "source": decoded([text_N[end - min(context, SHOWN_CONTEXT) : end] for end in first_B]),
            "reference": decoded([text_N[end : end + horizon] for end in first_B]),
            "prediction": decoded(written_BT[kept]),
            "num_tokens": np.full(len(kept), horizon),
            "truncated": [False] * len(kept),
            "reward": [None] * len(kept),
        }
        tables.append(pa.table(columns, schema=PREDICTIONS))
    return pa.concat_tables(tables)


def _measured(artifact: Artifact, resamples: int, block: int, seed: int) -> Measured:
    windows = pq.read_table(artifact.path / "windows.parquet")
    steps = pq.read_table(artifact.path / "steps.parquet")
    horizon = int(np.max(steps["step"].to_numpy())) + 1
    position_W = windows["position"].to_numpy().astype(np.int64)
    first = int(position_W.min())
    start_B = steps["start"].to_numpy().astype(np.int64)[::horizon] + first  # the position that step 0 predicts
    num_blocks = int(block_numbers(np.array([max(position_W.max(), start_B.max())]), block, first)[0]) + 1
    nll_W = windows["nll"].to_numpy().astype(np.float64)
    nll_BT = steps["nll"].to_numpy().astype(np.float64).reshape(-1, horizon)
    left_BT = steps["left"].to_numpy(zero_copy_only=False).reshape(-1, horizon)
    measures = cross_entropy(nll_W, block_numbers(position_W, block, first), num_blocks)
    measures += free_running(nll_BT, left_BT, block_numbers(start_B, block, first), num_blocks)
    return measure_all(measures, Resamples(num_outputs=num_blocks, num_resamples=resamples, seed=seed))


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


def _warn_if_no_better(build: Build, found: Mapping[str, Measured]) -> None:
    """The commonest silent failure of distillation: a teacher that knows no more than its student."""
    losses = {name: float(each.samples["cross_entropy"][0]) for name, each in found.items()}
    teacher = losses.pop("teacher")
    best = min(losses, key=lambda name: losses[name])
    if teacher >= losses[best]:
        build.warn(
            f"the teacher is no better than {best}: {teacher:.3f} against {losses[best]:.3f} nats per token on the "
            "held-out text; fine-tune the teacher longer, or take a larger one"
        )
