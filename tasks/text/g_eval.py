"""The stage `g_eval`: a judge reads what a system wrote when it ran free, and what the text has there."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.metrics.g_eval.scores import windows_to_judge
from kd_core.models.loading import load_tokenizer
from tasks.judge.judge import judge_texts
from tasks.judge.settings import Item, JudgeSettings
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage
from tasks.text.outputs import Continuations

VERDICTS = pa.schema(
    [
        ("start", pa.int32()),  # where in the text the context starts
        ("continuation", pa.string()),  # system, or true: that of the text
        ("score", pa.float64()),  # in [0, 1]; NULL where there is none
        ("outcome", pa.string()),  # weighted, written, refused, unparsed
        ("reason", pa.string()),
        ("text", pa.string()),  # what the judge wrote
    ]
)


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

    def tell(done: int, total: int) -> None:
        build.progress(done, total, "judgements")

    verdicts = judge_texts(build.store_root, settings, items, tell)
    starts = [int(found.start_B[row]) for row in chosen]
    rows = _rows(starts, "system", verdicts[: len(chosen)]) + _rows(starts, "true", verdicts[len(chosen) :])
    pq.write_table(pa.Table.from_pylist(rows, schema=VERDICTS), build.dir / "verdicts.parquet")
    build.record(judged=len(rows), without_score=sum(row["score"] is None for row in rows))


def _rows(starts: list[int], continuation: str, verdicts: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"start": start, "continuation": continuation} | {name: getattr(each, name) for name in VERDICTS.names[2:]}
        for start, each in zip(starts, verdicts, strict=True)
    ]
