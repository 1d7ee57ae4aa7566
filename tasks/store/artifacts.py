"""Content-addressed artifacts: readers see all of one or none of it, and what is there is what its manifest says.

<root>/artifacts/<stage>/<key>/   what a stage has made, with manifest.json; never changed once it is there
<root>/.staging/                  what is being made; renamed into artifacts/ when it is whole and on disk
<root>/.locks/                    one file per key, held by flock: the kernel lets go of it when a process dies
<root>/.checkpoints/<stage>-<key> what survives a kill inside a stage; removed when the stage is done
<root>/.checked/<stage>-<key>.json how each file looked when its content was last checked; when it was last used
<root>/.damaged/                  artifacts and checkpoints that were not what they said, kept for a look
<root>/runs/<run id>.json         what was asked for, and which artifacts answered
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from tasks.store.files import digest, file_hash, known_fields, read_json, stamp, sync, write_json

MANIFEST = "manifest.json"
ONE_DISK = ("artifacts", ".staging", ".checkpoints", ".damaged")  # things are renamed from one of them into another


class StoreError(ValueError):
    """The store cannot do what it was asked. Two lines: what is wrong, and what to do."""


def default_root() -> Path:
    """$DISTILL_HOME, or ./outputs."""
    return Path(os.environ.get("DISTILL_HOME") or "outputs").expanduser().resolve()


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact as it was when it was made."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an artifact is, how it came about, and what it must contain."""

    stage: str
    key: str
    key_record: dict[str, Any]  # stage, settings, inputs, code: what the key is the hash of
    files: dict[str, FileRecord]
    stats: dict[str, Any]
    seconds: float  # to build
    created: str  # UTC, ISO 8601
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)  # name -> content of the artifact that was read
    accepted: list[dict[str, Any]] = field(default_factory=list)  # what it was known as before `distill accept`

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read a manifest. Raises ValueError, KeyError, TypeError or OSError if it is missing or not whole."""
        record = read_json(directory / MANIFEST)
        files = {name: FileRecord(**known_fields(FileRecord, entry)) for name, entry in record.pop("files").items()}
        manifest = cls(files=files, **known_fields(cls, record))
        datetime.fromisoformat(manifest.created)
        dict.items(manifest.key_record["inputs"])
        return manifest

    @property
    def content(self) -> str:
        """Hash over the names and hashes of all files: two artifacts of one content are the same bytes."""
        return digest({name: each.sha256 for name, each in self.files.items()})


@dataclass(frozen=True)
class Artifact:
    """A reference to an artifact: what stages take and return."""

    stage: str
    key: str
    path: Path

    def manifest(self) -> Manifest:
        """Read the manifest. Raises as `Manifest.read` does."""
        return Manifest.read(self.path)


class Store:
    """Artifacts under one root directory, for many processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        for name in ("artifacts", ".staging", ".locks", ".checkpoints", ".damaged", "runs"):
            _make_folder(self.root / name)
        with suppress(OSError):  # a store of before there was one, which may only be read
            (self.root / ".checked").mkdir(exist_ok=True)

    def check_disk(self) -> None:
        """Raise StoreError if directories that things are renamed between lie on several disks."""
        disks = {name: (self.root / name).stat().st_dev for name in ONE_DISK}
        for name, disk in disks.items():
            if disk != disks[ONE_DISK[0]]:
                raise StoreError(
                    f"{self.root / ONE_DISK[0]} and {self.root / name} lie on two disks\n"
                    "nothing can be renamed across: set DISTILL_HOME to a folder on one of them, without links inside"
                )

    def artifact(self, stage: str, key: str) -> Artifact:
        """The reference to an artifact, whether it exists or not."""
        return Artifact(stage, key, self.root / "artifacts" / stage / key)

    def artifacts(self, stage: str = "*") -> Iterator[Artifact]:
        """Every artifact that there is, of one stage or of all."""
        for path in sorted((self.root / "artifacts").glob(f"{stage}/*/")):
            yield Artifact(path.parent.name, path.name, path)

    def known_as(self, stage: str, key: str) -> Artifact:
        """The artifact that has this key, or had it before `distill accept`. Raises StoreError if there is none."""
        artifact = self.artifact(stage, key)
        if artifact.path.exists():
            return artifact
        for each in self.artifacts(stage):
            with suppress(OSError, ValueError, KeyError, TypeError):
                if any(before["key"] == key for before in each.manifest().accepted):
                    return each
        raise StoreError(f"{artifact.path} is gone\nrun again what it was used in: that builds it again")

    def checkpoint_dir(self, artifact: Artifact) -> Path:
        """Where an unfinished build of this artifact keeps what it has."""
        return self.root / ".checkpoints" / f"{artifact.stage}-{artifact.key}"

    def damage(
        self, artifact: Artifact, *, thorough: bool = False, of: Callable[[str], bool] = lambda name: True
    ) -> str | None:
        """What is wrong with an artifact that exists, or None.

        Every file is compared with its record: by size, and by content where the file has been touched since that was
        last done, or, if `thorough`, in any case. `of`: the files whose content matters, by name. Raises OSError for
        what cannot be read, which says nothing of it.
        """
        try:
            manifest = artifact.manifest()
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST} is missing or not whole ({type(error).__name__})"
        memo = self._memo(artifact)
        checked = {} if thorough else _read_stamps(memo)
        known = {name: checked[name] for name in manifest.files if name in checked}
        for name, record in manifest.files.items():
            try:
                now = stamp(artifact.path / name)
                if now[1] != record.bytes:
                    return f"{name} has {now[1]} bytes, not {record.bytes}"
                if now != checked.get(name) and of(name):
                    if file_hash(artifact.path / name) != record.sha256:
                        return f"{name} is not what it was: its content has changed"
                    known[name] = now
            except FileNotFoundError:
                return f"{name} is missing"
        if known != checked:
            used = self.used(artifact)  # to look is not to use
            with suppress(OSError):  # a store that may only be read is checked each time
                write_json(memo, {"files": known})
                os.utime(memo, (used, used))
        return None

    def touch(self, artifact: Artifact) -> None:
        """Note that an artifact is used now: `distill gc` leaves alone for a while what has been."""
        with suppress(OSError):
            self._memo(artifact).touch()

    def used(self, artifact: Artifact) -> float:
        """When an artifact was last used, in seconds since 1970; when it was made, where that is not known."""
        for path in (self._memo(artifact), artifact.path):
            with suppress(OSError):
                return path.stat().st_mtime
        return time.time()

    def forget(self, artifact: Artifact) -> None:
        """Remove what is recorded of the files of an artifact that is gone for good."""
        self._memo(artifact).unlink(missing_ok=True)

    def suspect(self, artifact: Artifact) -> Path:
        """A marker: it exists where an artifact, or an unfinished build of it, may have read something damaged."""
        return self.root / ".checked" / f"{artifact.stage}-{artifact.key}.suspect"

    def _memo(self, artifact: Artifact) -> Path:
        return self.root / ".checked" / f"{artifact.stage}-{artifact.key}.json"

    def set_aside(self, path: Path) -> Path:
        """Move something damaged to .damaged/ and return where it went."""
        target = self.root / ".damaged" / f"{path.parent.name}-{path.name}-{time.time_ns()}"
        path.rename(target)
        return target

    @contextmanager
    def lock(self, artifact: Artifact, waiting: Callable[[str], None]) -> Iterator[bool]:
        """Hold a key's lock; yields whether it had to be waited for. `waiting` is told by whom it is held."""
        with self._lock_file(artifact) as file:
            waited = not take(file.fileno(), fcntl.LOCK_EX)
            if waited:
                file.seek(0)
                waiting(file.read().strip() or "another process")
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()}")
            file.flush()
            yield waited

    @contextmanager
    def try_lock(self, artifact: Artifact, *, shared: bool = False) -> Iterator[bool]:
        """Hold a key's lock if nobody else has it, alone or with others who only read; yields whether it is held."""
        with self._lock_file(artifact, only_read=shared) as file:
            yield take(file.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX)

    def _lock_file(self, artifact: Artifact, *, only_read: bool = False) -> IO[str]:
        path = self.root / ".locks" / f"{artifact.stage}-{artifact.key}.lock"
        try:
            return path.open("a+", encoding="utf-8")
        except OSError:
            if not (only_read and path.is_file()):
                raise
            return path.open(encoding="utf-8")  # a store that may only be read: the builder's own file

    @contextmanager
    def staging(self, artifact: Artifact) -> Iterator[Path]:
        """A directory to build in, gone when the build fails. What a killed process left behind goes first."""
        for left in (self.root / ".staging").glob(f"{artifact.stage}-{artifact.key}-*"):
            shutil.rmtree(left, ignore_errors=True)  # we hold the key's lock: its owner is dead
        staged = Path(tempfile.mkdtemp(prefix=f"{artifact.stage}-{artifact.key}-", dir=self.root / ".staging"))
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def commit(self, artifact: Artifact, staged: Path, describe: Callable[[dict[str, FileRecord]], Manifest]) -> None:
        """Hash and sync every file, write the manifest last, and rename the whole into place."""
        paths = [path for path in sorted(staged.rglob("*")) if path.is_file()]
        names = {path.relative_to(staged).as_posix(): path for path in paths}
        stamps = {name: stamp(path) for name, path in names.items()}
        files = {name: FileRecord(path.stat().st_size, file_hash(path)) for name, path in names.items()}
        for path in paths:
            sync(path)
        write_json(staged / MANIFEST, asdict(describe(files)))
        for directory in {path.parent for path in paths} | {staged}:
            sync(directory)
        artifact.path.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(artifact.path)
        sync(artifact.path.parent)
        shutil.rmtree(self.checkpoint_dir(artifact), ignore_errors=True)
        with suppress(OSError):  # a shard that is unlinked above has another time of change since, and nothing else
            found = {name: stamp(artifact.path / name) for name in files}
            known = {name: now for name, now in found.items() if now[:-1] == stamps[name][:-1]}
            write_json(self._memo(artifact), {"files": known})


def _make_folder(path: Path) -> None:
    """Make a folder of the store, and those above it. Raises StoreError where something else is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        in_the_way = next(each for each in (path, *path.parents) if os.path.lexists(each))
        said = f"the store cannot be at {path.parent}: {in_the_way} is no folder"
        raise StoreError(f"{said}\nset DISTILL_HOME to one, or to a new name") from None


def _read_stamps(memo: Path) -> dict[str, list[int]]:
    try:
        stamps: dict[str, list[int]] = read_json(memo)["files"]
        return stamps
    except (OSError, ValueError, KeyError):
        return {}


def take(descriptor: int, kind: int) -> bool:
    """Lock a file if that can be done at once. Raises StoreError where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            f"the store's file system has no file locks ({error.strerror})\n"
            "set DISTILL_HOME to a folder on another one: a local disk, or NFS version 4"
        ) from None
    return True
