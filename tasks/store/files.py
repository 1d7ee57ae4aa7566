"""Files that are whole or not there, and records that know whether they are still what was written."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

SEAL = "sha256"  # of a JSON record's own content, inside it


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` fill a file beside `path`, then sync it and rename it into place: `path` is whole or not there."""
    partial = partial_of(path)
    try:
        writer(partial)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """Where this process fills a file that is to be at `path`. Two nodes may have a process of one number."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")


def writer_of(partial: Path) -> int | None:
    """The number of the process that fills a file, by its name; None for one of another machine."""
    machine, _, number = partial.stem.rpartition("-")
    return int(number) if number.isdigit() and machine.endswith(f".{socket.gethostname()}") else None


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Atomically write JSON, indented for people, with a hash of itself."""
    text = json.dumps(sealed(record), indent=2, ensure_ascii=False, allow_nan=True)
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON gives it back, with a hash of itself inside."""
    plain = json.loads(json.dumps(record))  # a number as a key sorts otherwise than the text it is read as
    return {**plain, SEAL: digest(plain)}


def read_json(path: Path) -> dict[str, Any]:
    """A record, without its hash. Raises ValueError if it is not what was written, OSError if it cannot be read."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError("it holds no record")
    seal = record.pop(SEAL, None)  # records of before there were seals have none
    if seal is not None and seal != digest(record):
        raise ValueError("its content has changed since it was written")
    return record


def known_fields(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record this version's dataclass has a field for: a later version's may hold more."""
    return {each.name: record[each.name] for each in fields(kind) if each.name in record}


def digest(record: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a record's canonical JSON."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stamp(path: Path) -> list[int]:
    """Inode, size and times of a file: some change when it is written to, replaced or copied."""
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def newest(path: Path) -> float:
    """When anything in a directory was last written or moved there, in seconds since 1970; of a file, when that was.

    Files that disappear meanwhile are passed over.
    """
    times = [path.lstat().st_mtime] if path.is_file() else [0.0]
    for folder, _, files in os.walk(path):
        for each in (folder, *(os.path.join(folder, name) for name in files)):  # noqa: PTH118 (of many files)
            with suppress(OSError):
                stat = os.stat(each)  # noqa: PTH116
                times.append(max(stat.st_mtime, stat.st_ctime))
    return max(times)
