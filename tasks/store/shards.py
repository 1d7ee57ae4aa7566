"""Finished parts of an unfinished build: each written whole, with a hash beside it, and never again.

A kill costs the parts that were not finished. What was finished is looked at before it is trusted: existing is not
being whole. A stage that works in shards says what is opened once a process, and what is computed for one shard:

    shards = Sharded(build, "windows", [Shard(("a-00000.npy",), rows, len(rows)) for rows in …])
    shards.make(partial(_opens, corpus, model))
    build.shards.collect(*shards.files)

    def _opens(corpus, model, runtime):
        loaded = load_artifact(model, device_of(runtime))

        def work(rows):
            …
            yield number                     # how much of the shard is done
            return [partial(save, found)]    # a writer for each of its files

        return work

The run's engine decides where: here, or in the processes of a cluster, which write where this one looks. So `_opens` is
a function at the top of a module. Progress counts across all shards.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tasks.engine.local import Engine, Opens, Steps
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import FileRecord, StoreError
from tasks.store.files import atomic_write, file_hash, link_or_copy

HASH = ".sha256"  # of the file beside it; written after it
SEEN_SECONDS = 90.0  # within which a node sees what another has written: NFS remembers what was not there for 60 s
T = TypeVar("T")
Writer = Callable[[Path], object]
Making = Steps[Iterable[Writer]]  # the work on a shard: how much is done, and in the end a writer for each file


class Shards:
    """The files of one build that survive a kill. `dir` is where they lie until all are there."""

    def __init__(self, directory: Path, built: Path, warn: Callable[[str], None]) -> None:
        self.dir = directory
        self._built, self._warn = built, warn
        self._known: dict[str, str] = {}  # name -> hash of what this process has written or checked
        self.collected: dict[str, str] = {}  # name -> hash of what is among those of the artifact

    def whole(self, *names: str) -> bool:
        """Whether all these files are there as they were written. A damaged one is named and dropped."""
        return False not in [self._whole(name) for name in names]  # all are looked at, to drop what is damaged

    def write(self, name: str, writer: Writer) -> None:
        """Let `writer` fill a file: whole or not there, its hash beside it."""
        self._known[name] = write_whole(self.dir / name, writer)

    def written(self, hashes: Mapping[str, str]) -> None:
        """Take note of files, name -> hash, that any process has written. Raises StoreError if they are not seen."""
        for name in hashes:
            wait_for(self.dir / name)
        self._known |= hashes

    def collect(self, *names: str) -> int:
        """Put files among those of the artifact; returns their bytes."""
        for name in names:
            link_or_copy(self.dir / name, self._built / name)
            self.collected[name] = self._known[name]
        return sum((self._built / name).stat().st_size for name in names)

    def check(self, files: Mapping[str, FileRecord]) -> None:
        """Raise StoreError if a file has changed between its writing and the commit."""
        for name, sha256 in self.collected.items():
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


def write_whole(path: Path, writer: Writer) -> str:
    """Let `writer` fill a file: whole or not there, its hash beside it. Returns the hash."""
    _beside(path).unlink(missing_ok=True)
    atomic_write(path, writer)
    sha256 = file_hash(path)
    atomic_write(_beside(path), lambda partial: partial.write_text(sha256, encoding="ascii"))
    return sha256


def wait_for(path: Path, size: int | None = None) -> None:
    """Wait until what another node has written is seen here. To list a folder makes NFS look at it anew."""
    until = time.monotonic() + SEEN_SECONDS
    while not (path.exists() and size in (None, path.stat().st_size)):
        if time.monotonic() > until:
            raise StoreError(f"{path} is not seen here, though a worker has written it\nmount the store on every node")
        time.sleep(0.05)
        for folder in (path.parent.parent, path.parent):
            with suppress(FileNotFoundError):  # it is not seen either
                list(folder.iterdir())


def _beside(path: Path) -> Path:
    return path.with_name(path.name + HASH)


class Building(Protocol):
    """The part of a stage's `Build` that is used here."""

    shards: Shards
    engine: Engine

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

    def make(self, opens: Callable[[RuntimeSettings], Callable[[T], Making]]) -> None:
        """Make the shards that are missing, by what `opens` gives. Tells how far all are, before, meanwhile and after.

        Raises what `opens` or its work raises, and ValueError for a shard that is given too few or too many writers.
        """
        missing = [shard for shard in self._shards if not self._build.shards.whole(*shard.files)]
        made = self.size - sum(shard.size for shard in missing)
        under_way: dict[int, int] = {}

        def tell(number: int, done: int) -> None:
            under_way[number] = done
            self._build.progress(made + sum(under_way.values()), self.size, self._unit)

        writes: Opens[Shard[T], dict[str, str]] = partial(_opened, opens, self._build.shards.dir)
        for number, hashes in self._build.engine.map(writes, missing, tell):
            self._build.shards.written(hashes)
            under_way[number] = missing[number].size
        self._build.progress(self.size, self.size, self._unit)


def _opened(
    opens: Callable[[RuntimeSettings], Callable[[T], Making]], directory: Path, runtime: RuntimeSettings
) -> Callable[[Shard[T]], Steps[dict[str, str]]]:
    """What makes a shard's files in `directory`, in whichever process; it returns their hashes."""
    work = opens(runtime)

    def make(shard: Shard[T]) -> Steps[dict[str, str]]:
        writers = yield from work(shard.of)
        return {name: write_whole(directory / name, writer) for name, writer in zip(shard.files, writers, strict=True)}

    return make
