"""What makes a model on this machine itself: the bytes of its files."""

import hashlib
from functools import cache
from pathlib import Path

Stamps = tuple[tuple[int, ...], ...]


def content_hash(model: Path) -> str:
    """SHA-256 over the names and bytes of a model directory's files, or a .gguf's bytes. A copy is the same model."""
    return _hash_of_files(model.resolve(), stamps(model))


def stamps(model: Path) -> Stamps:
    """What of a model's files changes when one of them is touched."""
    stats = (path.stat() for path in _files(model))
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)


@cache
def _hash_of_files(model: Path, _unchanged: Stamps) -> str:
    """The hash itself, once for as long as no file is touched: a large model takes many seconds to read."""
    digest = hashlib.sha256()
    for path in _files(model):
        digest.update(f"{path.relative_to(model).as_posix()}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _files(model: Path) -> list[Path]:
    return [model] if model.is_file() else sorted(path for path in model.rglob("*") if path.is_file())
