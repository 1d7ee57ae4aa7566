"""Models that write like the demo's, for the benchmarks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.reading.specs import DatasetSettings
from data.sources import load
from kd_core.models.shapes import T5Shape, build_t5
from kd_core.models.token_rows import TokenRows
from kd_core.models.tokenizer import train_tokenizer
from kd_core.train.batches import BatchSettings
from kd_core.train.state import OptimizerSettings, TrainState
from kd_core.train.supervised import Pairs, SupervisedSettings, train_supervised


def demo_parameters() -> dict[str, Any]:
    """The parameters of `llmr-chitchat`, as prefect.yaml names them."""
    catalogue = yaml.safe_load((Path(__file__).parents[1] / "prefect.yaml").read_text(encoding="utf-8"))
    parameters: dict[str, Any] = next(d["parameters"] for d in catalogue["deployments"] if d["name"] == "llmr-chitchat")
    return parameters


@dataclass(frozen=True)
class Bench:
    """A teacher and a student of the demo's shapes, fitted until they end their sentences, and the demo's inputs."""

    teacher: Any
    student: Any
    sources: TokenRows
    max_new_tokens: int


def demo_bench(vocab_size: int | None = None, steps: int = 120) -> Bench:
    """Models over real dialogues; with `vocab_size`, their embeddings and heads are made that large."""
    parameters = demo_parameters()
    corpus = load(DatasetSettings(**parameters["dataset"]), 0, 20_000)
    source, target = (corpus.train[name].to_pylist() for name in ("source", "target"))
    tokenizer = train_tokenizer([*source, *target], parameters["teacher"]["vocab_size"])
    limit = parameters["lengths"]["source"]
    pairs = Pairs(TokenRows.encode(tokenizer, source, limit), TokenRows.encode(tokenizer, target, limit))
    settings = SupervisedSettings(
        max_steps=steps,
        validate_every=0,
        batch=BatchSettings(micro_batch_tokens=10**6, micro_batches=1),
        optimizer=OptimizerSettings(learning_rate=5e-3, warmup_steps=20),
    )
    models = []
    for seed, role in enumerate(("teacher", "student")):
        model = build_t5(T5Shape(**parameters[role]["shape"]), vocab_size or len(tokenizer), seed)
        list(train_supervised(TrainState.start(model, settings.optimizer), pairs, pairs, settings, seed))
        models.append(model)
    return Bench(models[0], models[1], pairs.source, parameters["lengths"]["target"])
