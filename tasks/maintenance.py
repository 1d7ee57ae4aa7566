"""Looking after a store: are its artifacts what they were, and which does nobody refer to any more."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tasks.runs import read_runs
from tasks.store import Artifact, Store, file_hash


@dataclass(frozen=True)
class Problem:
    """One artifact that is not what its manifest says."""

    artifact: Artifact
    what: str


def verify(store: Store, progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Problem]:
    """Compare every file of every artifact with the hash it had when it was made."""
    artifacts = list(store.artifacts())
    for done, artifact in enumerate(artifacts):
        progress(done, len(artifacts))
        what = store.damage(artifact) or _changed_file(artifact)
        if what is not None:
            yield Problem(artifact, what)
    progress(len(artifacts), len(artifacts))


def _changed_file(artifact: Artifact) -> str | None:
    for name, record in artifact.manifest().files.items():
        if file_hash(artifact.path / name) != record.sha256:
            return f"{name} is not what it was: its content has changed"
    return None


@dataclass(frozen=True)
class Garbage:
    """An artifact that no recent run refers to."""

    artifact: Artifact
    bytes: int


def unreferenced(store: Store, days: float) -> list[Garbage]:
    """Artifacts that no run of the last `days` days refers to; what a run that is still going has used is kept too.

    Raises ValueError for a negative number of days.
    """
    if days < 0:
        raise ValueError(f"days must be 0 or more, got {days}")
    since = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    recent = (run for run in read_runs(store) if run.started >= since or run.status == "running")
    kept = {(stage.stage, stage.key) for run in recent for stage in run.stages}
    return [
        Garbage(artifact, sum(path.stat().st_size for path in artifact.path.rglob("*") if path.is_file()))
        for artifact in store.artifacts()
        if (artifact.stage, artifact.key) not in kept
    ]


def delete(store: Store, garbage: list[Garbage]) -> int:
    """Delete artifacts, each under its lock; returns the bytes that this freed."""
    freed = 0
    for item in garbage:
        with store.lock(item.artifact, lambda who: None):
            # out of artifacts/ first: a reader never sees one that is half deleted
            shutil.rmtree(store.set_aside(item.artifact.path))
            freed += item.bytes
    return freed
