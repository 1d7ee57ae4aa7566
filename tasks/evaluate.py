"""The stage `evaluate`: all systems write for the same inputs; metrics and differences with intervals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kd_core.batching import TokenRows
from kd_core.beam_search import BeamSettings, beam_search
from kd_core.masking import mask_through_eos, truncated_rows
from kd_core.metrics.bootstrap import MetricValue
from kd_core.metrics.outputs import Outputs, References, compare_outputs, evaluate_outputs
from kd_core.policy import encode
from kd_core.rewards import RewardSettings
from kd_core.sampling import SamplingSettings, greedy, sample
from kd_core.scoring import judge
from kd_core.training import mixed_seed
from tasks.compute import LoadedModel, apply_prompt, device_of, load_artifact, read_split
from tasks.stage import Build, stage
from tasks.store import Artifact, atomic_write

BATCH_ROWS = 64

PREDICTIONS = pa.schema(
    [
        ("id", pa.int64()),
        ("system", pa.string()),
        ("source", pa.string()),
        ("reference", pa.string()),
        ("prediction", pa.string()),
        ("num_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("reward", pa.float64()),  # the teacher's, summed over the output's tokens, in nats of logit
    ]
)
_VALUES = [("metric", pa.string()), *((name, pa.float64()) for name in ("value", "low", "high"))]
_VALUES += [("n", pa.int64()), ("unit", pa.string()), ("note", pa.string())]
METRICS = pa.schema([("system", pa.string()), ("split", pa.string()), *_VALUES])
DIFFERENCES = pa.schema([("system", pa.string()), ("baseline", pa.string()), ("split", pa.string()), *_VALUES])


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the systems are compared. All of them decode alike."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    split: Literal["validation", "test"] = "test"
    max_rows: int | None = None  # the first rows of the split; None = all
    max_source_tokens: int = 512
    decoding: BeamSettings = field(default_factory=lambda: BeamSettings(num_beams=1, no_repeat_ngram_size=0))
    sampling: SamplingSettings | None = None  # draw the outputs instead, as a chat does: then decoding is not read
    resamples: int = 1000  # of the bootstrap behind the 95 % intervals
    seed: int = 0  # of the bootstrap, and of the samples

    def __post_init__(self) -> None:
        if self.split not in ("validation", "test"):
            raise ValueError(f"split must be validation or test, got {self.split!r}")
        for name in ("max_source_tokens", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {self.max_rows}")


@stage
def evaluate(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    students: Mapping[str, Artifact],
    prompt: str,
    reward: RewardSettings,
    settings: EvaluationSettings,
) -> None:
    """Write predictions.parquet, metrics.parquet and differences.parquet for the teacher and each student.

    The reward is the one that LLMR was trained on, unscaled; here a truncated output is bootstrapped, never dropped.
    """
    device = device_of(build.runtime)
    split = read_split(corpus, settings.split, ("id", "source", "target"), settings.max_rows)
    judge_model = load_artifact(teacher, device)
    prompted = _tokenise(judge_model, apply_prompt(prompt, split["source"]), settings)
    total = len(split["id"]) * (1 + len(students))
    tables: dict[str, pa.Table] = {}
    for number, (name, artifact) in enumerate({"teacher": teacher, **students}.items()):
        path = build.checkpoints.dir / f"{name}.parquet"
        if not path.exists():
            writer = judge_model if name == "teacher" else load_artifact(artifact, device)
            sources = prompted if name == "teacher" else _tokenise(writer, split["source"], settings)
            done = number * len(split["id"])

            def tell(rows: int, done: int = done) -> None:
                build.progress(done + rows, total, "outputs")

            rows = _predict(writer, judge_model, sources, prompted, reward, settings, tell)
            atomic_write(path, partial(pq.write_table, _table(name, rows, split)))
        tables[name] = pq.read_table(path)
    pq.write_table(pa.concat_tables(tables.values()), build.dir / "predictions.parquet")
    build.progress(total, total, "outputs, now the intervals")
    _measure(build.dir, tables, split["target"], settings)


def _tokenise(loaded: LoadedModel, texts: list[str], settings: EvaluationSettings) -> TokenRows:
    return TokenRows.encode(loaded.tokenizer, texts, settings.max_source_tokens)


def _predict(
    writer: LoadedModel,
    judge_model: LoadedModel,
    sources: TokenRows,
    prompted: TokenRows,
    reward: RewardSettings,
    settings: EvaluationSettings,
    tell: Callable[[int], None],
) -> list[dict[str, Any]]:
    """One system's outputs with the teacher's reward, in the order of the split."""
    by_row: dict[int, dict[str, Any]] = {}
    for rows in sources.lengths.argsort(stable=True).split(BATCH_ROWS):
        tokens, mask, truncated = _decode(writer, sources, rows, settings)
        rewards = _rewards(judge_model, prompted, rows, tokens, mask, truncated, reward)
        texts = writer.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        columns = zip(rows.tolist(), texts, mask.sum(1).tolist(), truncated.tolist(), rewards.tolist(), strict=True)
        for row, text, length, cut, summed in columns:
            by_row[row] = {"prediction": text.strip(), "num_tokens": length, "truncated": cut, "reward": summed}
        tell(len(by_row))
    return [by_row[row] for row in range(len(by_row))]


def _table(system: str, rows: list[dict[str, Any]], split: dict[str, list[Any]]) -> pa.Table:
    columns = {
        "id": split["id"],
        "system": [system] * len(rows),
        "source": split["source"],
        "reference": split["target"],
    }
    columns |= {name: [row[name] for row in rows] for name in ("prediction", "num_tokens", "truncated", "reward")}
    return pa.table(columns, schema=PREDICTIONS)


@torch.no_grad()
def _decode(
    writer: LoadedModel, sources: TokenRows, rows: Tensor, settings: EvaluationSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and truncated of a batch. One beam without a ban on repeats is plain greedy decoding.

    Samples are drawn with common random numbers: students are given the same uniforms for the same input.
    """
    model, decoding = writer.model, settings.decoding
    memory = encode(model, *sources.batch(rows, model.config.pad_token_id, model.device))
    if settings.sampling is not None:
        generator = torch.Generator(model.device).manual_seed(mixed_seed(settings.seed, int(rows[0])))
        rollout = sample(model, memory, settings.sampling, generator, num_tokens=writer.num_tokens)
        return rollout.tokens_BT, rollout.mask_BT, rollout.truncated_B
    if decoding.num_beams == 1 and decoding.no_repeat_ngram_size == 0:
        rollout = greedy(model, memory, decoding.max_new_tokens, num_tokens=writer.num_tokens)
        return rollout.tokens_BT, rollout.mask_BT, rollout.truncated_B
    tokens = beam_search(model, memory, decoding, num_tokens=writer.num_tokens).tokens_BT
    mask = mask_through_eos(tokens, model.config.eos_token_id)
    return tokens, mask, truncated_rows(tokens, mask, model.config.eos_token_id)


def _rewards(
    teacher: LoadedModel,
    prompted: TokenRows,
    rows: Tensor,
    tokens: Tensor,
    mask: Tensor,
    truncated: Tensor,
    reward: RewardSettings,
) -> Tensor:
    """(B,) the teacher's reward of each output, summed over its tokens."""
    source, source_mask = prompted.batch(rows, teacher.model.config.pad_token_id, teacher.model.device)
    kept = replace(reward, truncated="bootstrap")
    judged = judge(teacher.model, source, source_mask, tokens, mask, truncated, kept, num_tokens=teacher.num_tokens)
    return judged.reward_BT.sum(dim=1)


def _measure(directory: Path, tables: dict[str, pa.Table], references: list[str], settings: EvaluationSettings) -> None:
    """Metrics of each system, and of each pair of them on the same resamples."""
    shared = References(references, resamples=settings.resamples, seed=settings.seed)
    found = {
        name: evaluate_outputs(
            Outputs(
                predictions=table["prediction"].to_pylist(),
                num_tokens=table["num_tokens"].to_numpy(),
                truncated=table["truncated"].to_pylist(),
                reward_sum=table["reward"].to_numpy(),
                reward_count=table["num_tokens"].to_numpy(),
            ),
            shared,
        )
        for name, table in tables.items()
    }
    metrics = [_row(value, settings, system=name) for name, each in found.items() for value in each.metrics]
    names = list(found)
    pairs = [(later, earlier) for i, later in enumerate(names) for earlier in names[:i]]
    differences = [
        _row(value, settings, system=system, baseline=baseline)
        for system, baseline in pairs
        for value in compare_outputs(found[system], found[baseline])
    ]
    pq.write_table(pa.Table.from_pylist(metrics, schema=METRICS), directory / "metrics.parquet")
    pq.write_table(pa.Table.from_pylist(differences, schema=DIFFERENCES), directory / "differences.parquet")


def _row(value: MetricValue, settings: EvaluationSettings, **systems: str) -> dict[str, Any]:
    return systems | {"split": settings.split} | vars(value)
