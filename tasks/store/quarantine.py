"""What to do about a damaged artifact: it is moved aside, with everything that may have been built from the damage.

What was finished before stays; the time of a file's last change says when the damage was done. Where a bit has flipped
on the disk by itself no time says so, and everything that was built from the file goes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tasks.store.artifacts import MANIFEST, Artifact, Manifest, Store, StoreError
from tasks.store.checkpoints import INPUTS
from tasks.store.files import file_hash, newest, read_json

CLOCK_SECONDS = 0.05  # what two files' times may be wrong by
COPIED_SECONDS = 60.0  # a manifest's file is no younger than what it says, unless it was copied
UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Moved:
    """Something that was moved to .damaged/, and why. `to` is None for what somebody holds: it is marked instead."""

    what: str
    why: str
    to: Path | None

    def __str__(self) -> str:
        return f"{self.what}: {self.why}; " + (f"moved to {self.to}" if self.to else "marked, as somebody is at it")


def problem_of(store: Store, artifact: Artifact, inputs: Mapping[str, Artifact]) -> str | None:
    """Why an artifact that is there is no hit: it is damaged, or an input is not any more what it was built from."""
    damage = store.damage(artifact)
    if damage is not None:
        return f"damaged: {damage}"
    if store.suspect(artifact).exists():
        return "built from something that was damaged then"
    for name, content in artifact.manifest().inputs.items():
        try:
            if inputs[name].manifest().content != content:
                return f"built from another {name} than there is now"
        except UNREADABLE:  # it is gone, or damaged itself: whoever looks at it will say so
            continue
    return None


def contents_of(store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """The content of what a stage reads. Raises StoreError for an input that is not what it was made."""
    for each in inputs.values():
        damage = store.damage(each) if each.path.exists() else "it was deleted"
        if damage is not None:
            raise StoreError(
                f"{each.stage} {each.key[:8]} cannot be read from: {damage}\nrun again: it is then built anew"
            )
    return {name: each.manifest().content for name, each in inputs.items()}


def make_room(store: Store, artifact: Artifact, problem: str) -> list[Moved]:
    """Move an artifact aside that cannot be used, so that it can be built anew. Its lock must be held."""
    store.suspect(artifact).unlink(missing_ok=True)
    if store.damage(artifact) is not None:
        return quarantine(store, artifact, problem)
    return [Moved(_name(artifact), problem, store.set_aside(artifact.path))]


def quarantine(store: Store, artifact: Artifact, damage: str) -> list[Moved]:
    """Move a damaged artifact aside, and everything that was built from it since. Its lock must be held.

    The damaged one goes last: after an interruption the next check finds it again, and through it the rest. What a
    process holds is marked, and moved by whoever needs it next.
    """
    since, name = _damaged_since(artifact), _name(artifact)
    suspects = _built_from(store, artifact, since)
    why, moved = f"built from {name}, which was damaged then", list[Moved]()
    for directory in _unfinished(store, {artifact.key, *(each.key for each in suspects)}, since):
        stage, _, key = directory.name.rpartition("-")
        moved += _take(store, store.artifact(stage, key), directory, f"{stage} {key[:8]}, unfinished", why)
    for each in reversed(suspects):  # leaves first: what is left is still found through what it read
        moved += _take(store, each, each.path, _name(each), why)
    return [Moved(name, damage, store.set_aside(artifact.path)), *moved]


def _take(store: Store, artifact: Artifact, path: Path, what: str, why: str) -> list[Moved]:
    with store.try_lock(artifact) as held:
        if not held:
            store.suspect(artifact).touch()
            return [Moved(what, why, None)]
        return [Moved(what, why, store.set_aside(path))] if path.exists() else []


def _name(artifact: Artifact) -> str:
    return f"{artifact.stage} {artifact.key[:8]}"


def _damaged_since(artifact: Artifact) -> float:
    """When the first of the damaged files was last changed, in seconds since 1970 by the file system's clock.

    0 where the times mean nothing: in a store that was copied without them.
    """
    try:
        manifest = artifact.manifest()
    except UNREADABLE:
        return _changed(artifact.path / MANIFEST) - CLOCK_SECONDS
    created = datetime.fromisoformat(manifest.created).timestamp()
    if abs(_changed(artifact.path / MANIFEST) - created) > COPIED_SECONDS:
        return 0.0
    damaged = [name for name, record in manifest.files.items() if _hash(artifact.path / name) != record.sha256]
    return min((_changed(artifact.path / name) for name in damaged), default=0.0) - CLOCK_SECONDS


def _hash(path: Path) -> str | None:
    try:
        return file_hash(path)
    except OSError:
        return None


def _changed(path: Path) -> float:
    """When a file was last changed; of one that is gone, when the folder was that it went with."""
    return next(each for each in (path, *path.parents) if each.exists()).stat().st_mtime


def _built_from(store: Store, artifact: Artifact, since: float) -> list[Artifact]:
    """Artifacts that were finished after a moment and read this one, or read one that did."""
    manifests = dict(_manifests(store))
    found: dict[str, Artifact] = {artifact.key: artifact}
    grown = True
    while grown:
        grown = False
        for each, manifest in manifests.items():
            finished = _changed(each.path / MANIFEST)
            if each.key not in found and finished >= since and found.keys() & set(_inputs(manifest)):
                found[each.key], grown = each, True
    return [each for each in found.values() if each != artifact]


def _manifests(store: Store) -> Iterator[tuple[Artifact, Manifest]]:
    for each in store.artifacts():
        try:
            yield each, each.manifest()
        except UNREADABLE:  # damaged itself: whoever needs it will see
            continue


def _inputs(manifest: Manifest) -> list[str]:
    return list(manifest.key_record["inputs"].values())


def _unfinished(store: Store, keys: set[str], since: float) -> Iterator[Path]:
    """Directories of unfinished builds that read one of these artifacts, or may have, and were changed since then."""
    for directory in sorted((store.root / ".checkpoints").iterdir()):
        try:
            read = set(read_json(directory / INPUTS)["keys"])
        except UNREADABLE:
            read = keys
        if read & keys and newest(directory) >= since:
            yield directory
