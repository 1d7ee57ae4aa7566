"""The stage `score`: what the teacher writes for every training input, and on request what it thought of each token."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kd_core.batching import TokenRows
from kd_core.lengths import check_lengths, source_length
from kd_core.masking import mask_through_eos, truncated_rows
from kd_core.models.policy import encode
from kd_core.rollout.beam_search import BeamSettings, beam_search
from kd_core.rollout.token_labels import TokenLabels, top_k_labels
from tasks.compute import LoadedModel, device_of, load_artifact, prompt_rows, read_split
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How the teacher writes. Defaults: beam search with 4 beams and no repeated bigram, as in the paper's code."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    beam: BeamSettings = field(default_factory=BeamSettings)
    max_source_tokens: int = source_length()
    max_rows: int | None = None  # training inputs to write for, the first ones; None = all
    batch_rows: int = 64
    shard_rows: int = 2048  # a shard is written whole, and never again
    labels: Literal["none", "topk"] = "none"
    label_top_k: int = 50

    def __post_init__(self) -> None:
        for name in ("batch_rows", "shard_rows", "label_top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_lengths(self)
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {self.max_rows}")
        if self.labels not in ("none", "topk"):
            raise ValueError(f"labels must be none or topk, got {self.labels!r}")


@stage
def score(build: Build, corpus: Artifact, teacher: Artifact, prompt: str, settings: ScoreSettings) -> None:
    """Write outputs-*.parquet (and labels-*.parquet), shard by shard; finished shards survive a kill."""
    rows = read_split(corpus, "train", ("id", "source"), settings.max_rows)
    shards = range(0, len(rows["id"]), settings.shard_rows)
    missing = [start for start in shards if not build.shards.whole(*_names(settings, start), _seconds(settings, start))]
    if missing:
        loaded = load_artifact(teacher, device_of(build.runtime))
        sources = prompt_rows(loaded, prompt, rows["source"], settings.max_source_tokens)
        for start in missing:
            build.progress(start, len(rows["id"]), "inputs")
            index = torch.arange(start, min(start + settings.shard_rows, len(rows["id"])))
            _write_shard(build, loaded, sources, rows["id"], index, settings)
    _collect(build, settings, shards)


def _write_shard(
    build: Build, loaded: LoadedModel, sources: TokenRows, ids: list[int], index: Tensor, settings: ScoreSettings
) -> None:
    """Decode one shard and write it; rows stand in the order of the data, whatever order they were decoded in."""
    begun = time.monotonic()
    by_row: dict[int, dict[str, Any]] = {}
    labels: dict[int, TokenLabels] = {}
    for rows in index[sources.lengths[index].argsort(stable=True)].split(settings.batch_rows):
        for row, record, label in _decode(loaded, sources, rows, settings):
            by_row[row] = record | {"id": ids[row]}
            if label is not None:
                labels[row] = label
        build.progress(int(index[0]) + len(by_row), len(ids), "inputs")
    table = pa.Table.from_pylist([by_row[row] for row in index.tolist()], schema=OUTPUTS)
    seconds = str(time.monotonic() - begun)
    start = int(index[0])
    outputs, *rest = _names(settings, start)
    for name in rest:
        label_rows = [{"id": ids[row], **token} for row in index.tolist() for token in labels[row].rows()]
        build.shards.write(name, partial(pq.write_table, pa.Table.from_pylist(label_rows, schema=LABELS)))
    # beside the shard and not in it: the same inputs give the same bytes
    build.shards.write(_seconds(settings, start), lambda path: path.write_text(seconds, encoding="ascii"))
    build.shards.write(outputs, partial(pq.write_table, table))


def _decode(
    loaded: LoadedModel, sources: TokenRows, rows: Tensor, settings: ScoreSettings
) -> Iterator[tuple[int, dict[str, Any], TokenLabels | None]]:
    model = loaded.model
    source, source_mask = sources.batch(rows, model.config.pad_token_id, model.device)
    with torch.no_grad():
        memory = encode(model, source, source_mask)
        found = beam_search(model, memory, settings.beam, num_tokens=loaded.num_tokens)
    mask = mask_through_eos(found.tokens_BT, model.config.eos_token_id)
    truncated = truncated_rows(found.tokens_BT, mask, model.config.eos_token_id).tolist()
    labels: list[TokenLabels] | None = None
    if settings.labels == "topk":
        labels = top_k_labels(model, memory, found.tokens_BT, mask, settings.label_top_k, loaded.num_tokens)
    lengths, tokens, log_probs = mask.sum(1).tolist(), found.tokens_BT.tolist(), found.log_prob_B.tolist()
    texts = loaded.tokenizer.batch_decode(found.tokens_BT, skip_special_tokens=True)
    for i, row in enumerate(rows.tolist()):
        record = {
            "text": texts[i].strip(),
            "token_ids": tokens[i][: lengths[i]],
            "log_prob": log_probs[i],
            "truncated": truncated[i],
        }
        yield row, record, labels[i] if labels is not None else None


def _collect(build: Build, settings: ScoreSettings, shards: range) -> None:
    """Move the shards into the artifact and record rates and sizes."""
    tokens, seconds, size = 0, 0.0, 0
    for start in shards:
        names = _names(settings, start)
        size += build.shards.collect(*names)
        table = pq.read_table(build.dir / names[0], columns=["token_ids"])
        tokens += pc.sum(pc.list_value_length(table["token_ids"])).as_py()
        seconds += float((build.shards.dir / _seconds(settings, start)).read_text(encoding="ascii"))
    build.record(tokens=tokens, tokens_per_second=tokens / max(seconds, 1e-9), bytes_per_token=size / max(tokens, 1))


def _names(settings: ScoreSettings, start: int) -> list[str]:
    """The files of the shard that begins at a row: the outputs, then the labels where there are any."""
    kinds = ["outputs", "labels"] if settings.labels != "none" else ["outputs"]
    return [f"{kind}-{start // settings.shard_rows:05d}.parquet" for kind in kinds]


def _seconds(settings: ScoreSettings, start: int) -> str:
    return f"seconds-{start // settings.shard_rows:05d}.txt"


OUTPUTS = pa.schema(
    [
        ("id", pa.int64()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("log_prob", pa.float32()),
        ("truncated", pa.bool_()),
    ]
)
LABELS = pa.schema(
    [
        ("id", pa.int64()),
        ("position", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float16())),
        ("tail_log_prob", pa.float32()),
    ]
)
