"""A whole run on running text in seconds: a made-up language, two GPT-Neos of a few thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flows.catalogue import override
from flows.distill_text_outline import OUTLINE
from flows.outlines import execute
from flows.settings import validate
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter, Reporter
from tasks.store.stage import Run

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "fish",
    "sat",
    "ran",
    "sang",
    "swam",
    "on",
    "under",
    "over",
    "by",
    "mat",
    "tree",
    "roof",
    "pond",
    "and",
    "then",
    "it",
    "was",
    "good",
]
PARAMETERS: dict[str, Any] = {
    "teacher": {
        "shape": {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 32, "window_size": 4},
        "vocab_size": 48,
        "pretrain": {"block": 12, "batch_rows": 8, "max_steps": 6, "optimizer": {"learning_rate": 0.01}},
        "fit": {"alpha": 1.0, "epochs": 1, "optimizer": {"learning_rate": 0.01}},
    },
    "student": {
        "shape": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 32},
        "pretrain": {"block": 12, "batch_rows": 8, "max_steps": 4, "optimizer": {"learning_rate": 0.01}},
    },
    "windows": {"context": 8, "stride": 7},
    "labels": {"top_k": 5, "draws": 4},
    "method": {
        "rounds": 3, "horizon": 4, "epochs": 2, "patience": 0, "batch_rows": 16, "optimizer": {"learning_rate": 0.003}
    },
    "evaluation": {"horizon": 4, "window_stride": 3, "start_stride": 5, "resamples": 40, "block": 16},
    "runtime": {"device": "cpu", "threads": 1},
}  # fmt: skip


def write_texts(directory: Path) -> dict[str, str]:
    """A text to distil on and one to pre-train on, of sentences in which each word tells something of the next."""
    rng = np.random.default_rng(0)
    paths = {}
    for name, sentences in (("path", 120), ("pretraining_path", 240)):
        lines, word = [], 0
        for _ in range(sentences):
            line = []
            for _ in range(8):
                word = (3 * word + int(rng.integers(4))) % len(WORDS)
                line.append(WORDS[word])
            lines.append(" ".join(line) + " .")
        file = directory / f"{name}.txt"
        file.write_text("\n".join(lines), encoding="utf-8")
        paths[name] = str(file)
    return {"source": "file"} | paths


def text_parameters(directory: Path, *changes: str) -> dict[str, Any]:
    """Validated parameters of the tiny run, with `--set`s."""
    given = PARAMETERS | {"dataset": write_texts(directory)}
    return validate(OUTLINE.parameters, override(given, changes))


def run_text(
    store: Store, *changes: str, reporter: Reporter | None = None, planning: bool = False
) -> tuple[Run, Artifact]:
    """The tiny run, or its plan."""
    parameters = text_parameters(store.root, *changes)
    return execute(OUTLINE, store, "tiny-text", parameters, reporter or NullReporter(), planning=planning)
