"""Score and decode with one worker and with two, beside one process without Ray: `make test-ray` installs that.

    .venv-ray/bin/python -m benchmarks ray_shards

Every process has one thread, so two workers want two idle cores. The model is T5's with random weights: it never ends
a sentence, so that each row is the same work. What is timed is the stage, the loading of its models included; the
processes of the workers are there before.
"""

import csv
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common import line
from data.reading.specs import DatasetSettings
from kd_core.losses.rewards import RewardSettings
from kd_core.models.loading import save_model
from kd_core.models.prompts import Prompts
from kd_core.models.shapes import T5Shape, build_t5
from kd_core.models.tokenizer import train_tokenizer
from kd_core.rollout.beam_search import BeamSettings
from tasks.engine.settings import RuntimeSettings
from tasks.pairs.decode import DecodeSettings, decode
from tasks.pairs.prepare import prepare
from tasks.pairs.score import ScoreSettings, score
from tasks.pairs.teacher import TeacherSettings, teacher
from tasks.store.artifacts import Artifact, Store
from tasks.store.stage import open_run

ROWS, TOKENS = 8192, 32  # in all, of which half are decoded; tokens are written for each
SHAPE = T5Shape(d_model=256, d_kv=32, d_ff=1024, num_layers=4, num_decoder_layers=4, num_heads=8)
BEAM = BeamSettings(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=TOKENS)
LOCAL = RuntimeSettings(device="cpu", threads=1)


def run() -> Iterator[dict[str, Any]]:
    """Seconds a stage with one worker and with two; the reference is one process without Ray."""
    if find_spec("ray") is None:
        print("ray is not installed here: make test-ray, then .venv-ray/bin/python -m benchmarks", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        stages = stages_in(Path(folder))
        alone = {name: seconds(Path(folder), LOCAL, stage) for name, stage in stages.items()}
        for workers in (1, 2):
            runtime = RuntimeSettings(device="cpu", threads=1, engine="ray", workers=workers)
            for name, stage in stages.items():
                taken = seconds(Path(folder), runtime, stage)
                yield line("ray_shards", taken, alone[name], "s", what=name, workers=workers, rows=ROWS, tokens=TOKENS)


def stages_in(folder: Path) -> dict[str, Callable[[], Artifact]]:
    """What is timed, over a corpus and a teacher that are made here."""
    words = [f"{number:b} {number:o} {number}" for number in range(ROWS)]
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("source", "target"), *zip(words, words, strict=True)])
    tokenizer = train_tokenizer(words, 256)
    save_model(build_t5(SHAPE, len(tokenizer), 0), tokenizer, folder / "teacher")
    dataset = DatasetSettings(
        source="files", path=str(folder / "pairs.csv"), validation_share=0.01, test_share=0.5, source_column="source"
    )
    named = TeacherSettings(name=str(folder / "teacher"), prompt="{source}")
    with open_run(Store(folder / "home"), name="bench", runtime=LOCAL):
        corpus = prepare(dataset=dataset, seed=0, limit=None)
        model = teacher(corpus=corpus, settings=named, seed=0)
    scored = ScoreSettings(beam=BEAM, shard_rows=256, max_source_tokens=64)
    prompts = Prompts(named.reads, named.reads)
    return {
        "score": lambda: score(corpus=corpus, teacher=model, prompt=named.reads, settings=scored),
        "decode": lambda: decode(
            corpus=corpus,
            teacher=model,
            writer=model,
            prompt=prompts,
            prompted=True,
            reward=RewardSettings(truncated="bootstrap"),
            settings=DecodeSettings(decoding=BEAM, max_source_tokens=64),
        ),
    }


def seconds(folder: Path, runtime: RuntimeSettings, stage: Callable[[], Artifact]) -> float:
    """How long a stage takes that is not there. Raises AssertionError if its bytes differ from the last time."""
    with open_run(Store(folder / "home"), name="bench", runtime=runtime):
        made = stage()
    manifest, kept = made.manifest(), folder / f"{made.stage}.content"
    assert not kept.exists() or kept.read_text() == manifest.content, f"{made.stage} has other bytes than before"
    kept.write_text(manifest.content)
    shutil.rmtree(made.path)
    return manifest.seconds
