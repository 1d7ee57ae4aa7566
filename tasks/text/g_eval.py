"""The stage `g_eval`: a judge reads what a system wrote when it ran free, and what the text has there."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.metrics.g_eval.scores import windows_to_judge
from kd_core.models.loading import load_tokenizer
from tasks.engine.settings import RuntimeSettings
from tasks.judge.judge import judge_texts
from tasks.judge.settings import Item, JudgeSettings, endpoint_url
from tasks.store.artifacts import Artifact
from tasks.store.shards import Making, Shard, Sharded
from tasks.store.stage import Build, stage
from tasks.text.outputs import Continuations

SHARD_REQUESTS = 64
JUDGED = pa.schema(
    [
        ("score", pa.float64()),  # in [0, 1]; NULL where there is none
        ("outcome", pa.string()),  # weighted, written, refused, unparsed
        ("reason", pa.string()),
        ("text", pa.string()),  # what the judge wrote
    ]
)
WHERE = [
    pa.field("start", pa.int32()),  # where in the text the context starts
    pa.field("continuation", pa.string()),  # system, or true: that of the text
]
VERDICTS = pa.schema([*WHERE, *JUDGED])


@stage
def g_eval(build: Build, corpus: Artifact, written: Artifact, settings: JudgeSettings) -> None:
    """Write verdicts.parquet. What was judged before, by whichever run, is not asked for again.

    Raises EndpointError where the judge cannot be asked; every answer until then is kept.
    """
    found = Continuations.of(written)
    chosen = windows_to_judge(len(found.start_B), settings.max_windows)
    texts = found.texts(corpus, load_tokenizer(corpus.path / "tokenizer"), chosen)
    items = [Item(context=source, continuation=text) for source, text, _ in texts]
    items += [Item(context=source, continuation=true) for source, _, true in texts]

    # The address that the key names: a worker's environment may have another one. The key to it is the worker's own.
    asked = replace(settings, base_url=endpoint_url(settings))
    # In one process requests are in flight from the first to the last. Answers are kept one by one: where another cut
    # finds no shard it still asks nothing again.
    size = len(items) if build.runtime.engine == "local" else SHARD_REQUESTS
    parts = [items[first : first + size] for first in range(0, len(items), size)]
    names = [f"verdicts-{size}-{number:05d}.parquet" for number in range(len(parts))]
    shards = Sharded(
        build, "judgements", [Shard((name,), part, len(part)) for name, part in zip(names, parts, strict=True)]
    )
    shards.make(partial(_opens, build.store_root, asked))
    verdicts = [row for name in shards.files for row in pq.read_table(build.shards.dir / name).to_pylist()]
    starts = [int(found.start_B[row]) for row in chosen]
    rows = _rows(starts, "system", verdicts[: len(chosen)]) + _rows(starts, "true", verdicts[len(chosen) :])
    pq.write_table(pa.Table.from_pylist(rows, schema=VERDICTS), build.dir / "verdicts.parquet")
    build.record(judged=len(rows), without_score=sum(row["score"] is None for row in rows))


def _opens(store_root: Path, settings: JudgeSettings, runtime: RuntimeSettings) -> Callable[[list[Item]], Making]:
    """What judges a shard. What was judged before, by whichever run and process, is not asked for again."""

    def work(items: list[Item]) -> Making:
        verdicts = yield from judge_texts(store_root, settings, items)
        return [partial(pq.write_table, pa.Table.from_pylist([vars(each) for each in verdicts], schema=JUDGED))]

    return work


def _rows(starts: list[int], continuation: str, verdicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"start": start, "continuation": continuation} | each for start, each in zip(starts, verdicts, strict=True)]
