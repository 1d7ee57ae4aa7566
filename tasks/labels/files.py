"""The teacher's labels on disk: Parquet, a row a prediction; and as the losses read them.

Shape legend: M predictions, E teacher width, K labels kept, V vocabulary.

Training reads labels by row in random order, which Parquet cannot do: `open_labels` streams them once into plain arrays
in a scratch directory, of which each batch reads its rows. Memory does not grow with their number.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kd_core.losses.head import Head
from kd_core.losses.soft_targets import BucketLabels, HiddenLabels, Rows, SampledLabels, TeacherLabels, TopKLabels
from kd_core.rollout.teacher_labels import LabelSettings, make_labels
from tasks.store.artifacts import StoreError
from tasks.store.shards import Writer, wait_for
from tasks.store.stage import Build

READ_ROWS = 8192  # of a Parquet file, at a time
HEAD = "head.safetensors"
BUCKET = {b"tail": b"bucket"}  # in the schema of top-k labels whose rest is one more outcome


@dataclass(frozen=True)
class StoredRows:
    """A (M, K) array in a file, read run by run of rows: a map would count as memory, page after page of it."""

    path: Path
    dtype: Any
    width: int

    def __len__(self) -> int:
        return self.path.stat().st_size // (self.width * int(np.dtype(self.dtype).itemsize))

    def __getitem__(self, index: Any, /) -> Tensor:
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else index.numpy()
        found = np.empty((len(rows), self.width), self.dtype)
        first = np.flatnonzero(np.diff(rows, prepend=-2) != 1)  # of each run of consecutive rows
        with self.path.open("rb", buffering=0) as file:
            for start, end in pairwise([*first, len(rows)]):
                file.seek(int(rows[start]) * found.strides[0])
                if file.readinto(found[start:end].data) != (end - start) * found.strides[0]:
                    raise StoreError(f"{self.path} is shorter than it was\nrun again: it is made anew")
        return torch.from_numpy(found)


def drawn_labels(hidden_ME: Tensor, head: Head, settings: LabelSettings, seed: int) -> TeacherLabels:
    """The labels of the teacher's final states; sampled ones are drawn with numbers that the seed alone decides."""
    return make_labels(hidden_ME, head, settings, uniform_numbers(len(hidden_ME), settings, seed).to(hidden_ME.device))


def uniform_numbers(num: int, settings: LabelSettings, seed: int) -> Tensor:
    """(num, draws) numbers in [0, 1): what labels are drawn with, whatever the batches."""
    return torch.rand((num, settings.draws), generator=torch.Generator().manual_seed(seed))


def labels_writer(hidden_ME: Tensor, head: Head, settings: LabelSettings, seed: int, place: pa.Table) -> Writer:
    """What writes the labels of the teacher's final states as a Parquet file, beside the columns of `place`."""
    labels = drawn_labels(hidden_ME, head, settings, seed)
    return partial(write_labels, labels=labels, place=place, vocab_size=len(head))


def write_labels(path: Path, labels: TeacherLabels, place: pa.Table, vocab_size: int) -> None:
    """A Parquet file of labels beside the columns of `place`. Ids take two bytes where the vocabulary allows it."""
    ids = pa.uint16() if vocab_size <= 2**16 else pa.int32()
    split = ["token_ids.list.element"]
    if isinstance(labels, HiddenLabels):
        states = labels.hidden_ME[:].cpu()
        kind, split = pa.float16(), []
        if states.dtype != torch.float16:  # it could not hold them; Parquet has no bfloat16, whose zeros compress
            states, kind, split = states.float(), pa.float32(), ["hidden.list.element"]
        columns = {"hidden": _rows(states.numpy(), kind)}
    elif isinstance(labels, TopKLabels):
        log_prob_MK = labels.log_prob_MK[:].float()
        tail_M = torch.log1p(-log_prob_MK.exp().sum(dim=1).clamp(max=1)).half()
        columns = {
            "token_ids": _rows(labels.ids_MK[:].cpu().numpy(), ids),
            "log_probs": _rows(labels.log_prob_MK[:].cpu().numpy(), pa.float16()),
            "tail_log_prob": pa.array(tail_M.cpu().numpy(), pa.float16()),
        }
    elif isinstance(labels, SampledLabels):
        kept = (labels.count_MK[:] > 0).cpu().numpy()
        columns = {
            "token_ids": _ragged(labels.ids_MK[:].cpu().numpy(), kept, ids),
            "counts": _ragged(labels.count_MK[:].cpu().numpy(), kept, pa.uint8()),
        }
    else:
        raise TypeError(f"no such labels: {type(labels).__name__}")
    table = pa.table({name: place[name] for name in place.column_names} | columns)
    if isinstance(labels, BucketLabels):
        table = table.replace_schema_metadata(BUCKET)
    # bytes of one significance together: the upper bytes of ids are small and few, and compress
    pq.write_table(table, path, compression="zstd", use_dictionary=False, use_byte_stream_split=split)


def collect(build: Build, files: Sequence[str], predictions: int) -> None:
    """Put files of labels among those of the artifact, and note the bytes that a prediction takes."""
    build.record(bytes_per_token=build.shards.collect(*files) / predictions)
    warn_if_widened(build, files)


def warn_if_widened(build: Build, files: Sequence[str]) -> None:
    """Say that labels are hidden states that float16 cannot hold, if any of these files is."""
    if widened(build.dir / name for name in files):
        build.warn("the teacher's final states exceed 65,504, the most that float16 can hold: they are kept in float32")


def widened(files: Iterable[Path]) -> bool:
    """Whether any file has hidden states that float16 could not hold."""
    return any(
        "hidden" in schema.names and schema.field("hidden").type.value_type == pa.float32()
        for schema in map(pq.read_schema, files)
    )


def open_labels(
    files: Iterable[Path], scratch: Path, name: str, head: Head | None, *, fill: bool = True
) -> TeacherLabels:
    """Labels of all files, one after another, in arrays in `scratch`; without `fill` another rank has put them there.

    `head` is the teacher's head, which hidden states need. Raises ValueError for files without labels.
    """
    files = list(files)
    if sum(pq.read_metadata(path).num_rows for path in files) == 0:
        raise ValueError(f"there are no labels among {len(files)} files")
    schema = pq.read_schema(files[0])

    def stored(column: str, dtype: Any) -> Rows:
        return _stored(files, column, dtype, scratch / f"{name}-{column}", fill=fill)

    if "hidden" in schema.names:
        if head is None:
            raise ValueError("labels that are hidden states need the teacher's head")
        return HiddenLabels(stored("hidden", np.float32 if widened(files) else np.float16), head)
    ids_MK = stored("token_ids", np.int32)
    if "log_probs" in schema.names:
        bucket = (schema.metadata or {}).get(b"tail") == BUCKET[b"tail"]
        return (BucketLabels if bucket else TopKLabels)(ids_MK, stored("log_probs", np.float16))
    return SampledLabels(ids_MK, stored("counts", np.uint8))


def head_writer(head: Head) -> Writer:
    """What writes a head, as it is, so that hidden states can be read without the model that they are of."""
    tensors = {"weight": head.weight_VD} | ({} if head.bias_V is None else {"bias": head.bias_V})
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    told = {"scale": repr(head.scale)} | ({} if head.softcap is None else {"softcap": repr(head.softcap)})
    return partial(save_file, tensors, metadata=told)


def read_head(path: Path, device: torch.device) -> Head:
    """The head that `head_writer` wrote."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        told, names = file.metadata(), file.keys()
        bias_V = file.get_tensor("bias") if "bias" in names else None
        softcap = float(told["softcap"]) if "softcap" in told else None
        return Head(file.get_tensor("weight"), bias_V, float(told["scale"]), softcap)


def _rows(values_MK: Any, kind: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values_MK).ravel()).cast(kind)
    return pa.FixedSizeListArray.from_arrays(flat, values_MK.shape[1])


def _ragged(values_MK: Any, kept_MK: Any, kind: pa.DataType) -> pa.Array:
    ends = np.concatenate([[0], np.cumsum(kept_MK.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values_MK[kept_MK]).cast(kind))


def _stored(files: Sequence[Path], column: str, dtype: Any, target: Path, *, fill: bool) -> StoredRows:
    """A column of lists as a (M, K) array in a file; shorter lists are padded with 0. Without `fill` it is there."""
    width = max(_longest(path, column) for path in files)
    if not fill:
        wait_for(target)
        return StoredRows(target, dtype, width)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        for lists in _lists(files, column):
            lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
            padded = np.zeros((len(lists), width), dtype)
            padded[np.arange(width) < lengths[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
            file.write(padded.data)
    return StoredRows(target, dtype, width)


def _lists(files: Iterable[Path], column: str) -> Iterator[Any]:
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(READ_ROWS, columns=[column]):
                yield batch.column(0)


def _longest(path: Path, column: str) -> int:
    kind = pq.read_schema(path).field(column).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    return max(int(lists.value_lengths().to_numpy(zero_copy_only=False).max()) for lists in _lists([path], column))
