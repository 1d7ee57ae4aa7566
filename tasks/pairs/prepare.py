"""The stage `prepare`: a data set's clean pairs, a Parquet file a split; what was dropped, why; how splits overlap."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.cleaning.split_overlap import Part, Work
from data.reading.reading import PROGRESS_UNITS
from data.reading.specs import DatasetSettings
from data.sources import SPLITS, Corpus, load
from tasks.engine.settings import RuntimeSettings
from tasks.store.shards import Making, Shard, Sharded
from tasks.store.stage import Build, stage

ROW_GROUP_ROWS = 20_000  # what a reader of some columns or rows must load at once: 80 MB of news articles


@stage
def prepare(build: Build, dataset: DatasetSettings, seed: int, limit: int | None) -> None:
    """Write train, validation, test, dropped, overlaps and split_overlaps.parquet; the same input gives the same bytes.

    seed: which dialogues go to which split, where the data set has no splits, and which pairs `limit` (of train) and
    the data set's own `max_validation` and `max_test` take.
    """
    if dataset.source == "hub" and dataset.revision is None and not dataset.is_local():
        build.warn(f"{dataset.name} has no revision: if it changes on the hub, this artifact will not notice")
    unit = PROGRESS_UNITS[dataset.source]
    corpus = load(dataset, seed, limit, lambda done, total: build.progress(done, total, unit), partial(_share, build))
    reports = {"dropped": corpus.dropped, "overlaps": corpus.overlaps, "split_overlaps": corpus.split_overlaps}
    for name, table in {**corpus.splits(), **reports}.items():
        pq.write_table(table, build.dir / f"{name}.parquet", compression="zstd", row_group_size=ROW_GROUP_ROWS)
    build.record(**_stats(corpus))


def _share(
    build: Build, lay_out: Callable[[Path], None], parts: Sequence[Part], opens: Callable[[Path], Work]
) -> Iterable[Any]:
    """What is found in each part of the search for overlap. The files that parts are made from go with the shards."""
    lay_out(build.checkpoints.dir)
    shards = Sharded(
        build,
        "dialogues searched",
        [Shard((f"overlap-{number:05d}.npy",), part, part.last - part.first) for number, part in enumerate(parts)],
    )
    shards.make(partial(_opens, opens, build.checkpoints.dir))
    return (np.load(build.shards.dir / name) for name in shards.files)


def _opens(opens: Callable[[Path], Work], directory: Path, runtime: RuntimeSettings) -> Callable[[Part], Making]:
    search = opens(directory)

    def work(part: Part) -> Making:
        found = search(part)
        yield part.last - part.first
        return [partial(_save, found)]

    return work


def _save(values: Any, path: Path) -> None:
    with path.open("wb") as file:  # np.save would add a suffix to the name
        np.save(file, values, allow_pickle=False)


def _stats(corpus: Corpus) -> dict[str, int | float]:
    """Pairs, dialogues and lengths by split, and the rows dropped by split and reason."""
    stats: dict[str, int | float] = {}
    for split, table in corpus.splits().items():
        stats[f"{split}_pairs"] = table.num_rows
        stats[f"{split}_pairs_before_limits"] = corpus.num_clean[split]
        stats[f"{split}_dialogues"] = pc.count_distinct(table["dialogue"]).as_py()
        for side in ("source", "target"):
            words = _num_words(table[side])
            stats[f"{split}_{side}_words_median"] = float(np.median(words))
            stats[f"{split}_{side}_words_p95"] = float(np.quantile(words, 0.95))
    for row in corpus.split_overlaps.to_pylist():
        if row["share"] is not None:
            stats[f"overlap {row['time']}: {row['split']} in {row['other']}"] = row["share"]
    stats |= {f"items {decision}": count for decision, count in _counts(corpus.overlaps["decision"])}
    stats |= {f"dropped_{split}": pc.sum(pc.equal(corpus.dropped["split"], split)).as_py() or 0 for split in SPLITS}
    return stats | {f"dropped: {split}: {reason}": count for (split, reason), count in corpus.drops().items()}


def _counts(values: Any) -> list[tuple[str, int]]:
    return sorted((pair["values"], pair["counts"]) for pair in pc.value_counts(values).to_pylist())


def _num_words(texts: Any) -> Any:
    """Words of each text: spaces + 1, since white space has been normalised."""
    return pc.add(pc.count_substring(texts, " "), pa.scalar(1, pa.int32())).to_numpy()
