"""Looking after a store: are its artifacts what they were, and what is there that nobody needs any more."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tasks.store.artifacts import Artifact, Store, StoreError
from tasks.store.files import newest, writer_of
from tasks.store.quarantine import Moved, quarantine
from tasks.store.runs import RunRecord, parts_of, process_start, scan_runs

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Problem:
    """One artifact that is not what its manifest says, and what was moved aside for it."""

    artifact: Artifact
    what: str
    moved: list[Moved]


def verify(store: Store, progress: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Problem]:
    """Compare every file of every artifact with the hash it had when it was made.

    What is damaged is moved aside, with everything that was built from it since; a run that needs it builds it anew.
    One that somebody is building or reading now is named and left where it is.
    """
    artifacts = list(store.artifacts())
    for done, artifact in enumerate(artifacts):
        progress(done, len(artifacts))
        try:
            if _damage(store, artifact) is None:
                continue
            with store.try_lock(artifact) as held:
                what = _damage(store, artifact)  # whoever had the lock may have mended or removed it
                if what is not None:
                    yield Problem(artifact, what, quarantine(store, artifact, what) if held else [])
        except OSError as error:  # this one cannot be read; the others can be looked at
            yield Problem(artifact, f"cannot be read: {error.strerror or error}", [])
    progress(len(artifacts), len(artifacts))


def _damage(store: Store, artifact: Artifact) -> str | None:
    return store.damage(artifact, thorough=True) if artifact.path.exists() else None


@dataclass(frozen=True)
class Garbage:
    """Something that no recent run refers to: an artifact, or what unfinished or damaged work has left."""

    what: str  # a stage, or the directory of the store that it lies in
    path: Path
    bytes: int
    artifact: Artifact | None = None  # whose lock says whether somebody is at it
    used: float | None = None  # when it last was


def unreferenced(store: Store, days: float, grace_hours: float = 1.0) -> list[Garbage]:
    """What no run of the last `days` days refers to, and what is left of builds that have ended.

    What a run that is still going has used is kept, its cells in other processes too, and so is what was used in the
    last `grace_hours`, by whomever. Raises ValueError for a negative number, StoreError if a run record cannot be read:
    nobody knows what that run has used.
    """
    for name, value in (("days", days), ("grace", grace_hours)):
        if not 0 <= value <= 36500:
            raise ValueError(f"{name} must be 0 or more, and less than a century, got {value:g}")
    # when each was last used, before the runs are asked: one that is used meanwhile shows that it was, to `delete`
    used = {artifact: store.used(artifact) for artifact in store.artifacts()}
    kept = _kept(store, days)
    garbage = [
        Garbage(artifact.stage, artifact.path, _size(artifact.path), artifact, last)
        for artifact, last in used.items()
        if not _known_as(artifact) & kept and time.time() - last >= grace_hours * HOUR
    ]
    return [*garbage, *_left_behind(store, days, grace_hours)]


def _known_as(artifact: Artifact) -> set[str]:
    """An artifact's keys: its own, and those that it had before `distill accept`."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return {artifact.key, *(each["key"] for each in artifact.manifest().accepted)}
    return {artifact.key}


def delete(store: Store, garbage: list[Garbage]) -> tuple[int, int]:
    """Delete what nobody holds and nobody has used since it was listed; returns how many and the bytes this freed."""
    count, freed = 0, 0
    for item in garbage:
        if item.artifact is None:
            count, freed = count + 1, freed + item.bytes
            _remove(item.path)
            continue
        with store.try_lock(item.artifact) as held:
            if not held or not item.path.exists() or item.used != _used(store, item.artifact, item.path):
                continue
            # out of its place first: a reader never sees an artifact that is half deleted
            _remove(store.set_aside(item.path))
            if item.path == item.artifact.path:
                store.forget(item.artifact)
            count, freed = count + 1, freed + item.bytes
    _tidy(store)
    return count, freed


def _used(store: Store, artifact: Artifact, path: Path) -> float:
    return store.used(artifact) if path == artifact.path else newest(path)


def _tidy(store: Store) -> None:
    """What is known of artifacts that are gone, and of processes of runs that have ended: bytes, not worth a list."""
    there = {f"{artifact.stage}-{artifact.key}" for artifact in store.artifacts()}
    for path in (store.root / ".checked").glob("*-*.json"):
        if path.name.removesuffix(".json") not in there:
            path.unlink(missing_ok=True)
    going = {run.run_id for run in scan_runs(store)[0] if run.status == "running"}
    for path in (store.root / "runs" / ".parts").glob("*"):
        if path.name not in going and time.time() - newest(path) >= DAY:
            shutil.rmtree(path, ignore_errors=True)


def _kept(store: Store, days: float) -> set[str]:
    """The key of everything that a recent run refers to, or one that is still going."""
    records, unreadable = scan_runs(store)
    since = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    recent = [run for run in records if run.started >= since or run.status == "running"]
    parts: list[RunRecord] = []
    for run in recent:
        found, torn = parts_of(store, run.run_id)
        parts, unreadable = parts + found, unreadable + torn
    if unreadable:
        raise StoreError(
            f"{unreadable[0]}: what that run has used is not known, so nothing is removed\n"
            "put the file right, or delete it to give up what only that run has used"
        )
    return {stage.key for run in [*recent, *parts] for stage in run.stages}


def _left_behind(store: Store, days: float, grace_hours: float) -> Iterator[Garbage]:
    """Staging that a killed process left, checkpoints of what is finished or given up, damaged things, torn records."""
    for path in sorted((store.root / ".staging").iterdir()):
        artifact = _artifact_of(store, path.name.rpartition("-")[0])
        if not path.name.startswith(".") and _is_free(store, artifact):
            yield Garbage(".staging", path, _size(path), artifact, newest(path))
    for path in sorted((store.root / ".checkpoints").iterdir()):
        artifact = _artifact_of(store, path.name)
        if _is_free(store, artifact):
            used = newest(path)
            if artifact.path.exists() or time.time() - used >= max(days * DAY, grace_hours * HOUR):
                yield Garbage(".checkpoints", path, _size(path), artifact, used)
    for path in sorted((store.root / ".damaged").iterdir()):  # a day is enough for a look: it takes a whole one's room
        if time.time() - newest(path) >= min(max(days, grace_hours / 24), 1) * DAY:
            yield Garbage(".damaged", path, _size(path))
    for path in sorted((store.root / "runs").glob(".*.partial")):
        writer, rest = writer_of(path), grace_hours
        if writer is None:  # of another machine, where it may live, or of a version before
            rest = max(rest, 1)
        elif process_start(writer):
            continue
        if time.time() - newest(path) >= rest * HOUR:
            yield Garbage("runs", path, _size(path))


def _artifact_of(store: Store, name: str) -> Artifact:
    stage, _, key = name.rpartition("-")
    return store.artifact(stage, key)


def _is_free(store: Store, artifact: Artifact) -> bool:
    with store.try_lock(artifact) as held:
        return held


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):  # it has just gone
                total += Path(folder, name).stat().st_size
    return total


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
