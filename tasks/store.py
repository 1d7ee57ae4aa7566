"""Content-addressed artifacts: readers see all of one or none of it, and what is there is what its manifest says.

<root>/artifacts/<stage>/<key>/   what a stage has made, with manifest.json; never changed once it is there
<root>/.staging/                  what is being made; renamed into artifacts/ when it is whole and on disk
<root>/.locks/                    one file per key, held by flock: the kernel lets go of it when a process dies
<root>/.checkpoints/<stage>-<key> what survives a kill inside a stage; removed when the stage is done
<root>/.damaged/                  artifacts and checkpoints that were not what they said, kept for a look
<root>/runs/<run id>.json         what was asked for, and which artifacts answered
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class StoreError(ValueError):
    """The store cannot do what it was asked, in one line, with a second that says what to do."""


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

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Raises ValueError, KeyError or OSError if it is missing or not whole."""
        record = json.loads((directory / MANIFEST).read_text())
        files = {name: FileRecord(**entry) for name, entry in record.pop("files").items()}
        return cls(files=files, **record)


@dataclass(frozen=True)
class Artifact:
    """The small reference that stages pass around."""

    stage: str
    key: str
    path: Path

    def manifest(self) -> Manifest:
        """Its manifest, read anew."""
        return Manifest.read(self.path)


class Store:
    """Artifacts under one root directory, for many processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        for name in ("artifacts", ".staging", ".locks", ".checkpoints", ".damaged", "runs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def artifact(self, stage: str, key: str) -> Artifact:
        """The reference to an artifact, whether it exists or not."""
        return Artifact(stage, key, self.root / "artifacts" / stage / key)

    def artifacts(self, stage: str = "*") -> Iterator[Artifact]:
        """Every artifact that there is, of one stage or of all."""
        for path in sorted((self.root / "artifacts").glob(f"{stage}/*")):
            yield Artifact(path.parent.name, path.name, path)

    def checkpoint_dir(self, artifact: Artifact) -> Path:
        """Where an unfinished build of this artifact keeps what it has."""
        return self.root / ".checkpoints" / f"{artifact.stage}-{artifact.key}"

    def damage(self, artifact: Artifact) -> str | None:
        """What is wrong with an artifact that exists, or None.

        Looks at the manifest and at file sizes, not at contents.
        """
        try:
            manifest = artifact.manifest()
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST} is missing or not whole ({type(error).__name__})"
        for name, record in manifest.files.items():
            try:
                size = (artifact.path / name).stat().st_size
            except FileNotFoundError:
                return f"{name} is missing"
            if size != record.bytes:
                return f"{name} has {size} bytes, not {record.bytes}"
        return None

    def set_aside(self, path: Path) -> Path:
        """Move something damaged to .damaged/ and return where it went."""
        target = self.root / ".damaged" / f"{path.parent.name}-{path.name}-{time.time_ns()}"
        path.rename(target)
        return target

    @contextmanager
    def lock(self, artifact: Artifact, waiting: Callable[[str], None]) -> Iterator[bool]:
        """Hold the key's lock; yields whether another process had to be waited for.

        `waiting` is told by whom it is held.
        """
        path = self.root / ".locks" / f"{artifact.stage}-{artifact.key}.lock"
        with path.open("a+") as file:
            waited = False
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                file.seek(0)
                waiting(file.read().strip() or "another process")
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()}")
            file.flush()
            yield waited

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
        files = {
            path.relative_to(staged).as_posix(): FileRecord(path.stat().st_size, file_hash(path)) for path in paths
        }
        for path in paths:
            sync(path)
        write_json(staged / MANIFEST, asdict(describe(files)))
        for directory in {path.parent for path in paths} | {staged}:
            sync(directory)
        artifact.path.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(artifact.path)
        sync(artifact.path.parent)
        shutil.rmtree(self.checkpoint_dir(artifact), ignore_errors=True)


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
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        writer(partial)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, record: object) -> None:
    """Atomically write JSON, indented for people."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=True)
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
