"""Finished parts of an unfinished build: each written whole, with a hash beside it, and never again.

A kill costs the parts that were not finished. What was finished is looked at before it is trusted: existing is not
being whole. A stage that works in shards says what is computed for one, and no more:

    shards = Sharded(build, "windows", [Shard(("a-00000.npy",), rows, len(rows)) for rows in …])
    for shard in shards.missing():
        shards.write(shard, partial(save, computed_from(shard.of)))
    build.shards.collect(*shards.files)

Progress counts across all shards.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tasks.store.artifacts import FileRecord, StoreError
from tasks.store.files import atomic_write, file_hash, link_or_copy

HASH = ".sha256"  # of the file beside it; written after it
T = TypeVar("T")
Writer = Callable[[Path], object]


class Shards:
    """The files of one build that survive a kill. `dir` is where they lie until all are there."""

    def __init__(self, directory: Path, built: Path, warn: Callable[[str], None]) -> None:
        self.dir = directory
        self._built, self._warn = built, warn
        self._known: dict[str, str] = {}  # name -> hash of what this process has written or checked
        self._collected: dict[str, str] = {}

    def whole(self, *names: str) -> bool:
        """Whether all these files are there as they were written. A damaged one is named and dropped."""
        return False not in [self._whole(name) for name in names]  # all are looked at, to drop what is damaged

    def write(self, name: str, writer: Writer) -> None:
        """Let `writer` fill a file: whole or not there, its hash beside it."""
        path = self.dir / name
        _beside(path).unlink(missing_ok=True)
        atomic_write(path, writer)
        self._known[name] = sha256 = file_hash(path)
        atomic_write(_beside(path), lambda partial: partial.write_text(sha256, encoding="ascii"))

    def collect(self, *names: str) -> int:
        """Put files among those of the artifact; returns their bytes."""
        for name in names:
            link_or_copy(self.dir / name, self._built / name)
            self._collected[name] = self._known[name]
        return sum((self._built / name).stat().st_size for name in names)

    def check(self, files: Mapping[str, FileRecord]) -> None:
        """Raise StoreError if a file has changed between its writing and the commit."""
        for name, sha256 in self._collected.items():
            if files[name].sha256 != sha256:
                raise StoreError(f"{self.dir / name} has changed since it was written\nrun again: it is made anew")

    def _whole(self, name: str) -> bool:
        path = self.dir / name
        if name in self._known:
            return True
        try:
            found, written = file_hash(path), _beside(path).read_text(encoding="ascii")
        except FileNotFoundError:  # it was never finished
            return False
        except UnicodeDecodeError:
            found, written = "", "-"
        if found == written:
            self._known[name] = found
            return True
        self._warn(f"{path} is damaged: not what was written; dropped, to be made anew")
        path.unlink()
        _beside(path).unlink()
        return False


def _beside(path: Path) -> Path:
    return path.with_name(path.name + HASH)


class Building(Protocol):
    """The part of a stage's `Build` that is used here."""

    shards: Shards

    def progress(self, done: float, total: float, unit: str = "") -> None:
        """Tell how far the stage is."""


@dataclass(frozen=True)
class Shard(Generic[T]):
    """A part of the work, written whole and never again: what a kill can cost."""

    files: tuple[str, ...]
    of: T  # what it is made from
    size: int = 1  # its part of the work, in the unit that progress is told in


class Sharded(Generic[T]):
    """All shards of a build, in order."""

    def __init__(self, build: Building, unit: str, shards: Iterable[Shard[T]]) -> None:
        self._build, self._unit, self._shards = build, unit, list(shards)
        self.size = sum(shard.size for shard in self._shards)
        self.files = [name for shard in self._shards for name in shard.files]
        starts = accumulate((shard.size for shard in self._shards), initial=0)
        self._start = {shard.files: start for shard, start in zip(self._shards, starts, strict=False)}

    def missing(self) -> Iterator[Shard[T]]:
        """The shards that are to be made, in order. Tells how far the stage is before each of them and after all."""
        missing = [shard for shard in self._shards if not self._build.shards.whole(*shard.files)]
        for shard in missing:
            self.tell(shard, 0)
            yield shard
        self._build.progress(self.size, self.size, self._unit)

    def tell(self, shard: Shard[T], done: int) -> None:
        """Tell how much of a shard is done."""
        self._build.progress(self._start[shard.files] + done, self.size, self._unit)

    def write(self, shard: Shard[T], *writers: Writer) -> None:
        """Write a shard's files, each by its writer."""
        for name, writer in zip(shard.files, writers, strict=True):
            self._build.shards.write(name, writer)
