"""The teacher's labels on disk: Parquet, a row a prediction; and as the loss reads them.

Shape legend: M predictions, E teacher width, K labels kept.

Training reads labels by row in random order, which Parquet cannot do: `open_labels` streams them once into
memory-mapped arrays in a scratch directory.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kd_core.losses.head import Head
from kd_core.losses.soft_targets import HiddenLabels, SampledLabels, TeacherLabels, TopKLabels
from kd_core.windows.teacher_labels import LabelSettings, make_labels
from tasks.store.shards import Writer


def drawn_labels(hidden_ME: Tensor, head: Head, settings: LabelSettings, seed: int) -> TeacherLabels:
    """The labels of the teacher's final states; sampled ones are drawn with numbers that the seed alone decides."""
    uniform_MN = torch.rand((len(hidden_ME), settings.draws), generator=torch.Generator().manual_seed(seed))
    return make_labels(hidden_ME, head, settings, uniform_MN.to(hidden_ME.device))


def labels_writer(hidden_ME: Tensor, head: Head, settings: LabelSettings, seed: int, place: pa.Table) -> Writer:
    """What writes the labels of the teacher's final states as a Parquet file, beside the columns of `place`."""
    labels = drawn_labels(hidden_ME, head, settings, seed)
    return partial(write_labels, labels=labels, place=place, vocab_size=len(head))


def write_labels(path: Path, labels: TeacherLabels, place: pa.Table, vocab_size: int) -> None:
    """A Parquet file of labels beside the columns of `place`. Ids take two bytes where the vocabulary allows it."""
    ids = pa.uint16() if vocab_size <= 2**16 else pa.int32()
    if isinstance(labels, HiddenLabels):
        columns = {"hidden": _rows(labels.hidden_ME.cpu().numpy(), pa.float16())}
    elif isinstance(labels, TopKLabels):
        log_prob_MK = labels.log_prob_MK.float()
        tail_M = torch.log1p(-log_prob_MK.exp().sum(dim=1).clamp(max=1)).half()
        columns = {
            "token_ids": _rows(labels.ids_MK.cpu().numpy(), ids),
            "log_probs": _rows(labels.log_prob_MK.cpu().numpy(), pa.float16()),
            "tail_log_prob": pa.array(tail_M.cpu().numpy(), pa.float16()),
        }
    elif isinstance(labels, SampledLabels):
        kept = (labels.count_MK > 0).cpu().numpy()
        columns = {
            "token_ids": _ragged(labels.ids_MK.cpu().numpy(), kept, ids),
            "counts": _ragged(labels.count_MK.cpu().numpy(), kept, pa.uint8()),
        }
    else:
        raise TypeError(f"no such labels: {type(labels).__name__}")
    table = pa.table({name: place[name] for name in place.column_names} | columns)
    # bytes of one significance together: the upper bytes of ids are small and few, and compress
    split = ["token_ids.list.element"] if "token_ids" in columns else []
    pq.write_table(table, path, compression="zstd", use_dictionary=False, use_byte_stream_split=split)


def open_labels(files: Iterable[Path], scratch: Path, name: str, head: Head | None) -> TeacherLabels:
    """Labels of all files, one after another, memory-mapped from `scratch`.

    `head` is the teacher's head, which hidden states need. Raises ValueError for files without labels.
    """
    files = list(files)
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    if rows == 0:
        raise ValueError(f"there are no labels among {len(files)} files")
    columns = pq.read_schema(files[0]).names
    if "hidden" in columns:
        if head is None:
            raise ValueError("labels that are hidden states need the teacher's head")
        return HiddenLabels(_mapped(files, "hidden", rows, np.float16, scratch, name), head)
    ids_MK = _mapped(files, "token_ids", rows, np.int32, scratch, name)
    if "log_probs" in columns:
        return TopKLabels(ids_MK, _mapped(files, "log_probs", rows, np.float16, scratch, name))
    return SampledLabels(ids_MK, _mapped(files, "counts", rows, np.uint8, scratch, name))


def _rows(values_MK: Any, kind: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values_MK).ravel()).cast(kind)
    return pa.FixedSizeListArray.from_arrays(flat, values_MK.shape[1])


def _ragged(values_MK: Any, kept_MK: Any, kind: pa.DataType) -> pa.Array:
    ends = np.concatenate([[0], np.cumsum(kept_MK.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values_MK[kept_MK]).cast(kind))


def _mapped(files: list[Path], column: str, rows: int, dtype: Any, scratch: Path, name: str) -> Tensor:
    """A column of lists as a memory-mapped (M, K) tensor; shorter lists are padded with 0."""
    width = max(_longest(path, column) for path in files)
    scratch.mkdir(parents=True, exist_ok=True)
    target = np.lib.format.open_memmap(scratch / f"{name}-{column}.npy", mode="w+", dtype=dtype, shape=(rows, width))
    start = 0
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(columns=[column]):
            lists = batch.column(0)
            lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
            target[start : start + len(lists)][np.arange(width) < lengths[:, None]] = lists.flatten().to_numpy()
            start += len(lists)
    return torch.from_numpy(target)


def _longest(path: Path, column: str) -> int:
    kind = pq.read_schema(path).field(column).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    batches = pq.ParquetFile(path).iter_batches(columns=[column])
    return max(int(batch.column(0).value_lengths().to_numpy(zero_copy_only=False).max()) for batch in batches)
