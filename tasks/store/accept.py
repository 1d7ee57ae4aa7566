"""Artifacts that would be built again for no reason but code, known by the code of today where somebody says so.

For those who know that a change of code changes no result. Nothing is moved: the artifact is linked under its new key,
its manifest says what it was known as before, and what was built from it follows. Runs of before keep what they had.
"""

import os
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from graphlib import TopologicalSorter

from tasks.store.artifacts import MANIFEST, Artifact, Manifest, Store
from tasks.store.files import link_or_copy, sync, write_json
from tasks.store.fingerprint import Code, reached, stages
from tasks.store.keys import SHOWN, KeyRecord, code_difference, key_of
from tasks.store.runs import utc_now


@dataclass(frozen=True)
class Acceptable:
    """An artifact that another key would find, and why it does not as things are."""

    artifact: Artifact
    target: Artifact
    record: KeyRecord
    why: str


def acceptable(store: Store, *, stage: str | None = None, used: Container[str] | None = None) -> list[Acceptable]:
    """What would be a hit again if its code were taken for today's, inputs before what was built from them.

    stage: only artifacts of this one; used: only those with these keys. What was built from them is listed in any case.
    """
    manifests = dict(_whole(store))
    by_key = {artifact.key: artifact for artifact in manifests}
    known_as: dict[str, str] = {}
    found: dict[str, tuple[str, Acceptable]] = {}
    for key in _inputs_first(manifests):
        artifact = by_key[key]
        old = manifests[artifact].key_record
        code = _identity(_code_of(old))
        chosen = stage in (None, artifact.stage) and (used is None or key in used)
        inputs = {name: known_as.get(each, each) for name, each in old["inputs"].items()}
        new = {**old, "inputs": inputs, "code": code if chosen and code else old["code"]}
        target = store.artifact(artifact.stage, key_of(new))
        if target == artifact:
            continue
        known_as[key] = target.key
        created = manifests[artifact].created
        if not target.path.exists() and created > found.get(target.key, ("",))[0]:  # of several the newest
            found[target.key] = created, Acceptable(artifact, target, new, _why(old, new))
    return [item for _, item in found.values()]


def accept(store: Store, item: Acceptable, command: str) -> bool:
    """Make an artifact known by its new key; returns whether that was still to do. `command`: who said so, and how.

    Raises OSError for a disk that cannot be written to.
    """
    with store.lock(item.artifact, lambda who: None), store.lock(item.target, lambda who: None):
        if item.target.path.exists() or store.damage(item.artifact) is not None:
            return False
        old = item.artifact.manifest()
        before = {"key": old.key, "code": old.key_record["code"], "inputs": old.key_record["inputs"]}
        accepted = [*old.accepted, before | {"at": utc_now(), "command": command}]
        new = replace(old, key=item.target.key, key_record=item.record, accepted=accepted)
        with store.staging(item.target) as staged:
            for name in old.files:
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(item.artifact.path / name, staged / name)
            write_json(staged / MANIFEST, asdict(new))
            times = (item.artifact.path / MANIFEST).stat()  # they say when it was built: `distill verify` goes by them
            os.utime(staged / MANIFEST, ns=(times.st_atime_ns, times.st_mtime_ns))
            for directory in {(staged / name).parent for name in old.files} | {staged}:
                sync(directory)
            item.target.path.parent.mkdir(parents=True, exist_ok=True)
            staged.rename(item.target.path)
            sync(item.target.path.parent)
        return True


def _whole(store: Store) -> Iterator[tuple[Artifact, Manifest]]:
    """The artifacts that are what they were; `distill verify` is there for the others."""
    for artifact in store.artifacts():
        with suppress(OSError, ValueError, KeyError, TypeError):
            if store.damage(artifact) is None:
                yield artifact, artifact.manifest()


def _inputs_first(manifests: dict[Artifact, Manifest]) -> Iterator[str]:
    sorter = TopologicalSorter({a.key: manifest.key_record["inputs"].values() for a, manifest in manifests.items()})
    there = {artifact.key for artifact in manifests}
    return (key for key in sorter.static_order() if key in there)


def _why(old: KeyRecord, new: KeyRecord) -> str:
    """What is other code than it was, by name and by the files in which that stands now."""
    if old["code"] == new["code"]:
        return "follows its inputs"
    files = {each.path for name, each in _code_of(old).items() if each.digest != old["code"].get(name)}
    is_named = files and len(files) <= SHOWN
    return f"code: {code_difference(old, new)}" + (f" ({', '.join(sorted(files))})" if is_named else "")


def _identity(code: Mapping[str, Code]) -> dict[str, str]:
    return {name: each.digest for name, each in code.items()}


def _code_of(record: KeyRecord) -> Mapping[str, Code]:
    """The code of today's stage that takes what this one took; empty if there is none."""
    arguments = {*record["settings"], *(name.partition(".")[0] for name in record["inputs"])}
    modules = [module for module, names in stages().get(record["stage"], []) if arguments <= names]
    return reached(modules[0], record["stage"]) if len(modules) == 1 else {}
