"""What to do about an artifact that is not what it was: it is moved aside, and with it all that may have read it so.

What was finished before the damage was done is innocent and stays; the time of a file's last change says when that was.
Where a bit has flipped on the disk by itself no time tells, and everything built from the file goes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.files import file_hash, read_json
from tasks.store import MANIFEST, Artifact, Manifest, Store, StoreError

CLOCK_SECONDS = 0.05  # what two of the system's clocks may differ by
UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Moved:
    """Something that was moved to .damaged/, and why. `to` is None for what somebody holds: it stays where it is."""

    what: str
    why: str
    to: Path | None

    def __str__(self) -> str:
        return f"{self.what}: {self.why}; " + (f"moved to {self.to}" if self.to else "left there: somebody is at it")


def problem_of(store: Store, artifact: Artifact, inputs: Mapping[str, Artifact]) -> str | None:
    """Why an artifact that is there is no hit: it is damaged, or an input is not any more what it was built from."""
    damage = store.damage(artifact)
    if damage is not None:
        return f"damaged: {damage}"
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
    """Move aside what is no hit, to build it anew. Its lock must be held."""
    if store.damage(artifact) is not None:
        return quarantine(store, artifact, problem)
    return [Moved(_name(artifact), problem, store.set_aside(artifact.path))]


def quarantine(store: Store, artifact: Artifact, damage: str) -> list[Moved]:
    """Move a damaged artifact aside, and everything that was built from it since. Its lock must be held."""
    since, name = _damaged_since(artifact), _name(artifact)
    suspects = _built_from(store, artifact, since)
    moved = [Moved(name, damage, store.set_aside(artifact.path))]
    why = f"built from {name}, which was damaged then"
    for each in suspects:
        with store.try_lock(each) as held:
            to = store.set_aside(each.path) if held and each.path.exists() else None
            moved.append(Moved(_name(each), why, to))
    keys = {artifact.key, *(each.key for each in suspects)}
    for directory in _unfinished(store, keys, since):
        stage, _, key = directory.name.rpartition("-")
        with store.try_lock(store.artifact(stage, key)) as held:
            moved.append(Moved(f"{stage} {key[:8]}, unfinished", why, store.set_aside(directory) if held else None))
    return moved


def _name(artifact: Artifact) -> str:
    return f"{artifact.stage} {artifact.key[:8]}"


def _damaged_since(artifact: Artifact) -> float:
    """When the first of the damaged files was last changed, in seconds since 1970."""
    try:
        records = artifact.manifest().files
    except UNREADABLE:
        return _changed(artifact.path / MANIFEST) - CLOCK_SECONDS
    damaged = [name for name, record in records.items() if _hash(artifact.path / name) != record.sha256]
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
            finished = datetime.fromisoformat(manifest.created).astimezone(UTC).timestamp()
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
    """Checkpoints of stages that read one of these artifacts, saved after a moment."""
    for note in sorted((store.root / ".checkpoints").glob("*/inputs.json")):
        newest = max(path.stat().st_mtime for path in note.parent.rglob("*"))
        try:
            read = set(read_json(note)["keys"])
        except UNREADABLE:
            read = keys
        if read & keys and newest >= since:
            yield note.parent
