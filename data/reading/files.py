"""Local CSV, JSONL and Parquet files, read a piece at a time."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data.reading.columns import Columns, rows_of_arrow
from data.reading.dialogues import BATCH_ROWS, RawRow
from data.reading.named_files import check_encoding, named_file, not_utf8
from data.visible import BYTE_ORDER_MARK

Advance = Callable[[int], None]  # told how many bytes of the file have been read
_OBJECT_A_LINE = 'mend the line: each is one object, for example {"source": "…", "target": "…"}'
_COPY_ANEW = "copy it anew from where it came, or write it anew"


def read_rows(path: Path, columns: Columns, advance: Advance) -> Iterator[RawRow]:
    """The raw rows of a file, by its extension: .csv (with a header), .jsonl or .parquet.

    Raises FileNotFoundError; ValueError naming the file, and the line where the format has lines, for an unknown
    extension, a pointer of Git LFS, missing columns, bytes that are no UTF-8, and anything malformed. What the system
    refuses (no permission, a failing disk) is an OSError: it says nothing about the file.
    """
    path = named_file(path)
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path} must end in {', '.join(readers)}, got {path.suffix or 'no extension'!r}\n"
            "write its rows as one of these, and name that file"
        )
    return reader(path, columns, advance)


def _csv_rows(path: Path, columns: Columns, advance: Advance) -> Iterator[RawRow]:
    if columns.turns is not None:
        raise ValueError(
            f"{path}: a CSV cell holds no list, so turns_column needs .jsonl or .parquet\n"
            "write the dialogues as one of these, or give pairs with source_column and target_column"
        )
    csv.field_size_limit(2**31 - 1)  # the default refuses fields over 128 KiB, which articles can be
    check_encoding(path)
    with path.open("rb") as file:
        # a mark before a quotation mark would make it part of the field: at the start, or where files were joined
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        reader = csv.reader((line.removeprefix(BYTE_ORDER_MARK) for line in text), strict=True)
        records = _csv_records(path, file, reader, advance)
        _, header = next(records, (0, []))
        if not header:
            raise ValueError(f"{path} is empty: not even a header\nname another file, or write this one anew")
        columns.check_present(header, str(path))
        positions = [header.index(name) for name in columns.names()]
        for line, record in records:
            if len(record) != len(header):
                raise ValueError(
                    f"{path}:{line}: {len(record)} fields, but the header has {len(header)}\n"
                    "mend the row: a field with a comma or a line's end in it stands in quotation marks"
                )
            yield from columns.rows([record[position] for position in positions], line, str(path))


def _csv_records(path: Path, file: BinaryIO, reader: Any, advance: Advance) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it starts at; blank lines are skipped, as everywhere in CSV."""
    for number in itertools.count(1):
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            advance(file.tell())
            return
        except csv.Error as error:
            raise ValueError(
                f"{path}:{line}: malformed CSV: {error}\n"
                "mend the row: a field in quotation marks ends with one, and doubles those inside it"
            ) from None
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from None
        if number % BATCH_ROWS == 0:
            advance(file.tell())
        if record:
            yield line, record


def _jsonl_rows(path: Path, columns: Columns, advance: Advance) -> Iterator[RawRow]:
    names = columns.names()
    num_bytes = 0
    check_encoding(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            num_bytes += len(line)
            if number % BATCH_ROWS == 0:
                advance(num_bytes)
            line = line.removeprefix(codecs.BOM_UTF8)
            if line.isspace():
                continue
            try:
                record = json.loads(line)
                if rb"\ud" in line.lower():
                    json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is no text
            except UnicodeDecodeError as error:
                raise not_utf8(path, error) from None
            except (json.JSONDecodeError, UnicodeEncodeError) as error:
                raise ValueError(f"{path}:{number}: malformed JSON: {error}\n{_OBJECT_A_LINE}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}:{number}: a JSON {type(record).__name__}, not an object\n{_OBJECT_A_LINE}")
            columns.check_present(list(record), f"{path}:{number}")
            yield from columns.rows([record[name] for name in names], number, str(path))
    advance(num_bytes)


def _parquet_rows(path: Path, columns: Columns, advance: Advance) -> Iterator[RawRow]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        if _is_refusal(error):
            raise
        raise ValueError(f"{path}: not a readable Parquet file: {_first_line(error)}\n{_COPY_ANEW}") from None
    with file:
        columns.check_present(file.schema_arrow.names, str(path))
        columns.check_types(file.schema_arrow, str(path))
        yield from rows_of_arrow(columns, _parquet_batches(file, path, columns, advance), str(path))


def _parquet_batches(file: Any, path: Path, columns: Columns, advance: Advance) -> Iterator[Any]:
    size, total, done = path.stat().st_size, max(1, file.metadata.num_rows), 0
    batches = file.iter_batches(batch_size=BATCH_ROWS, columns=columns.names())
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            if _is_refusal(error):
                raise
            raise ValueError(
                f"{path}: damaged Parquet file after row {done}: {_first_line(error)}\n{_COPY_ANEW}"
            ) from None
        if batch is None:
            return
        done += batch.num_rows
        advance(size * done // total)
        yield batch.select(columns.names())


def _is_refusal(error: Exception) -> bool:
    """Whether the system would not let a file be read: Arrow's errors about a file's content have no number."""
    return isinstance(error, OSError) and error.errno is not None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
