"""A stage's work in shards: what was finished before a kill is not made again, and progress counts across all of it.

    shards = Sharded(build, "windows", [Shard(("a-00000.npy",), rows, len(rows)) for rows in …])
    for shard in shards.missing():
        shards.write(shard, partial(save, computed_from(shard.of)))
    build.shards.collect(*shards.files)

What is computed for one shard is all that a stage says.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Generic, TypeVar

from tasks.store.stage import Build

T = TypeVar("T")
Writer = Callable[[Path], object]


@dataclass(frozen=True)
class Shard(Generic[T]):
    """A part of the work, written whole and never again: what a kill can cost."""

    files: tuple[str, ...]
    of: T  # what it is made from
    size: int = 1  # its part of the work, in the unit that progress is told in


class Sharded(Generic[T]):
    """All shards of a build, in order."""

    def __init__(self, build: Build, unit: str, shards: Iterable[Shard[T]]) -> None:
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
