"""The stage `score`: what the teacher writes for every training input."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import model_validator
from torch import Tensor

from kd_core.lengths import check_lengths, source_length
from kd_core.models.backends.remote import RemoteModel, Writing
from kd_core.models.policy import encode, encode_rows
from kd_core.models.prompts import Prompt
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.beam_search import BeamSettings, beam_search
from kd_core.rollout.responses import mask_through_eos, truncated_rows
from tasks.compute.device import teacher_devices
from tasks.compute.models import LoadedModel, load_artifact
from tasks.compute.served import ANSWERS
from tasks.engine.local import Steps
from tasks.engine.settings import RuntimeSettings
from tasks.pairs.inputs import prompt_rows, read_split
from tasks.store.artifacts import Artifact
from tasks.store.shards import Making, Shard, Sharded
from tasks.store.stage import Build, stage


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How the teacher writes. Defaults: beam search with 4 beams and no repeated bigram, as in the paper's code."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)
    __retired__ = {"labels": "none", "label_top_k": 50}  # noqa: RUF012 (what keys hold of settings that it had)

    beam: BeamSettings = field(default_factory=BeamSettings)
    max_source_tokens: int = source_length()
    max_rows: int | None = None  # training inputs to write for, the first ones; None = all
    batch_rows: int = 64
    shard_rows: int = 2048  # what a kill can cost

    @model_validator(mode="before")
    @classmethod
    def _without_retired(cls, given: Any) -> Any:
        """The record of an earlier run has them as they were; whoever sets one is told where it is set now."""
        if not isinstance(given, dict):
            return given
        for name, new in (("labels", "labels.kind"), ("label_top_k", "labels.top_k")):
            if given.get(name, cls.__retired__[name]) != cls.__retired__[name]:
                raise ValueError(f"{name} is no setting of score any more: labels are a stage of their own\nset {new}")
        return {name: value for name, value in given.items() if name not in cls.__retired__}

    def __post_init__(self) -> None:
        for name in ("batch_rows", "shard_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_lengths(self)
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {self.max_rows}")


@stage
def score(build: Build, corpus: Artifact, teacher: Artifact, prompt: Prompt, settings: ScoreSettings) -> None:
    """Write outputs-*.parquet, shard by shard; finished shards survive a kill."""
    num_rows = len(read_split(corpus, "train", ("id",), settings.max_rows)["id"])
    parts = (
        # the seconds stand beside the table and not in it: the same inputs give the same bytes
        Shard((f"outputs-{number:05d}.parquet", f"seconds-{number:05d}.txt"), index, len(index))
        for number, index in enumerate(torch.arange(num_rows).split(settings.shard_rows))
    )
    shards = Sharded(build, "inputs", parts)
    shards.make(partial(_opens, corpus, teacher, prompt, settings, build.checkpoints.dir / ANSWERS))
    _record(build, build.shards.collect(*(name for name in shards.files if name.endswith(".parquet"))))


def _opens(
    corpus: Artifact,
    teacher: Artifact,
    prompt: Prompt,
    settings: ScoreSettings,
    answers: Path,
    runtime: RuntimeSettings,
) -> Callable[[Tensor], Making]:
    """The teacher and all that it reads, opened once a process; then what makes a shard of some rows."""
    train = read_split(corpus, "train", ("id", "source"), settings.max_rows)
    loaded = load_artifact(teacher, teacher_devices(runtime), answers=answers)
    sources = prompt_rows(loaded, prompt, train["source"], settings.max_source_tokens)

    def work(index: Tensor) -> Making:
        begun = time.monotonic()
        table = yield from _table(loaded, sources, train["id"], index, settings)
        seconds = (time.monotonic() - begun) / (runtime.workers or 1)  # as many shards are made meanwhile
        return partial(pq.write_table, table), partial(_note, str(seconds))

    return work


def _note(text: str, path: Path) -> None:
    path.write_text(text, encoding="ascii")


def _table(
    loaded: LoadedModel, sources: TokenRows, ids: list[int], index: Tensor, settings: ScoreSettings
) -> Steps[pa.Table]:
    """The outputs of a shard in the order of the data; they are decoded by length."""
    outputs: dict[int, dict[str, Any]] = {}
    for rows in index[sources.lengths[index].argsort(stable=True)].split(settings.batch_rows):
        outputs |= _decode(loaded, sources, rows, settings)
        yield len(outputs)
    return pa.Table.from_pylist([{"id": ids[row]} | outputs[row] for row in index.tolist()], schema=OUTPUTS)


def _decode(
    loaded: LoadedModel, sources: TokenRows, rows: Tensor, settings: ScoreSettings
) -> Iterator[tuple[int, dict[str, Any]]]:
    model = loaded.model
    if isinstance(model, RemoteModel):
        yield from _written(loaded, sources, rows, settings)
        return
    source, source_mask = sources.batch(rows, model.config.pad_token_id, model.device)
    with torch.no_grad():
        memory = encode(model, source, source_mask)
        found = beam_search(model, memory, settings.beam, num_tokens=loaded.num_tokens)
    mask = mask_through_eos(found.tokens_BT, model.config.eos_token_id)
    truncated = truncated_rows(found.tokens_BT, mask, model.config.eos_token_id).tolist()
    lengths, tokens, log_probs = mask.sum(1).tolist(), found.tokens_BT.tolist(), found.log_prob_B.tolist()
    texts = loaded.tokenizer.batch_decode(found.tokens_BT, skip_special_tokens=True)
    for i, row in enumerate(rows.tolist()):
        record = {
            "text": texts[i].strip(),
            "token_ids": tokens[i][: lengths[i]],
            "log_prob": log_probs[i],
            "truncated": truncated[i],
        }
        yield row, record


def _written(
    loaded: LoadedModel, sources: TokenRows, rows: Tensor, settings: ScoreSettings
) -> Iterator[tuple[int, dict[str, Any]]]:
    """What a teacher behind a server writes, greedily."""
    memory: Any = encode_rows(loaded.model, sources, rows)
    written = loaded.model.write(memory.prompts, Writing(settings.beam.max_new_tokens))
    for row, each in zip(rows.tolist(), written, strict=True):
        text = loaded.tokenizer.decode(each.token_ids, skip_special_tokens=True).strip()
        yield row, {"text": text} | vars(each)


def _record(build: Build, size: int) -> None:
    """How many tokens the teacher wrote, how fast, and the bytes that each takes."""
    written = (pq.read_table(path, columns=["token_ids"]) for path in build.dir.glob("outputs-*.parquet"))
    tokens = sum(pc.sum(pc.list_value_length(table["token_ids"])).as_py() for table in written)
    seconds = sum(float(path.read_text(encoding="ascii")) for path in build.shards.dir.glob("seconds-*.txt"))
    build.record(tokens=tokens, tokens_per_second=tokens / max(seconds, 1e-9), bytes_per_token=size / max(tokens, 1))


OUTPUTS = pa.schema(
    [
        ("id", pa.int64()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("log_prob", pa.float32()),
        ("truncated", pa.bool_()),
    ]
)
