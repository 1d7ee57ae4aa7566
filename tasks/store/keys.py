"""The key of a stage: a hash over everything that decides its result, and what differs between two of them."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from tasks.ranges import check_numbers
from tasks.store.artifacts import Artifact, Store
from tasks.store.fingerprint import code_identity

KeyRecord = dict[str, Any]
SHOWN = 3  # differences in a line


def key_record(stage: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> KeyRecord:
    """Stage, settings, inputs and code as plain JSON. Artifacts (and dicts of them) are inputs; all else is a setting.

    What a stage was given later than artifacts were made has a default, and is left out where it has it: they stay.
    Raises TypeError for an argument that has no canonical form, ValueError for a number that some library cannot hold.
    """
    known = inspect.signature(function).parameters
    arguments = {name: value for name, value in arguments.items() if name not in known or value != known[name].default}
    inputs = {name: each.key for name, each in inputs_of(arguments).items()}
    settings = {name: canonical(value, name) for name, value in arguments.items() if not _inputs(name, value)}
    for name, value in settings.items():
        check_numbers(name, value)
    return {"stage": stage, "settings": settings, "inputs": inputs, "code": code_identity(function)}


def inputs_of(arguments: Mapping[str, Any]) -> dict[str, Artifact]:
    """The artifacts among a stage's arguments, those of a dict as `name.part`."""
    return {part: each for name, value in arguments.items() for part, each in _inputs(name, value).items()}


def _inputs(name: str, value: Any) -> dict[str, Artifact]:
    if isinstance(value, Artifact):
        return {name: value}
    if isinstance(value, dict) and value and all(isinstance(item, Artifact) for item in value.values()):
        return {f"{name}.{part}": item for part, item in value.items()}
    return {}


def key_of(record: KeyRecord) -> str:
    """32 hex digits of the SHA-256 of a key record's canonical JSON."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def canonical(value: Any, where: str) -> Any:
    """Plain JSON for a setting. A settings object with an `identity()` is that; a float field is a float, 1 or 1.0.

    A field that a class was given `later` (in its metadata) is left out where it has its default, as in `key_record`;
    one that it has no more stands in its `__retired__` with the value that artifacts were made with.
    """
    if hasattr(value, "identity") and not isinstance(value, type):
        return canonical(value.identity(), where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        pairs = ((f.name, getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value) if _told(f, value))
        told = {name: canonical(_as_declared(item, hint), f"{where}.{name}") for name, item, hint in pairs}
        return told | getattr(type(value), "__retired__", {})
    if isinstance(value, Mapping):
        return {str(name): canonical(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item, where) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} cannot be part of a stage's key: {type(value).__name__}")


def _told(field: dataclasses.Field[Any], value: Any) -> bool:
    return not field.metadata.get("later") or getattr(value, field.name) != field.default


def _as_declared(value: Any, hint: Any) -> Any:
    is_float = hint is float or float in getattr(hint, "__args__", ())
    return float(value) if is_float and isinstance(value, int) and not isinstance(value, bool) else value


def explain(store: Store, stage: str, record: KeyRecord) -> list[str]:
    """Why there is no artifact with this key: all that differs from the nearest one of the stage that there is.

    Settings first: an input differs because something before it does. An artifact that has no input in common and a
    good part of its settings otherwise is of another recipe, and explains nothing.
    """
    nearest: tuple[list[str], bool] | None = None
    for artifact in store.artifacts(stage):
        try:
            old = artifact.manifest().key_record
            found = difference(old, record), _is_like(old, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # damaged: it cannot be compared with
        if nearest is None or len(found[0]) < len(nearest[0]):
            nearest = found
    if nearest is None:
        return ["nothing built yet"]
    lines, is_like = nearest
    if not is_like:
        return ["nothing like it was built yet"]
    return sorted(lines, key=lambda line: not line.startswith("setting: "))


def in_short(reasons: Sequence[str]) -> str:
    """The first of some reasons, in a line, and how many more there are."""
    more = len(reasons) - SHOWN
    return "; ".join(reasons[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _is_like(old: KeyRecord, new: KeyRecord) -> bool:
    """Whether two records of a stage are of one recipe, by the inputs and settings that they share."""
    if set(old["inputs"].items()) & set(new["inputs"].items()):
        return True
    flat_old, flat_new = dict(flatten(old["settings"])), dict(flatten(new["settings"]))
    num_changed = len(_changed(flat_old, flat_new))
    return num_changed <= SHOWN or num_changed < len({*flat_old, *flat_new}) / 4


def difference(old: KeyRecord, new: KeyRecord) -> list[str]:
    """What has changed from one key record to another, a line each: inputs, settings; all of the code in one line."""
    lines = [f"input: {name}" for name in _changed(old["inputs"], new["inputs"])]
    flat_old, flat_new = dict(flatten(old["settings"])), dict(flatten(new["settings"]))
    names = _changed(flat_old, flat_new)
    lines += [
        f"setting: {name} {_short(flat_old.get(name))} → {_short(flat_new.get(name))}"
        for name in names
        if not any(other.startswith(f"{name}.") for other in names)  # null against settings: those say it
    ]
    return lines + ([f"code: {code_difference(old, new)}"] if old["code"] != new["code"] else [])


def code_difference(old: KeyRecord, new: KeyRecord) -> str:
    """Which definitions differ between two records of a stage: the first few by name, and how many more there are."""
    if any("/" in name for name in old["code"]):  # a record of before there were definitions in it
        return "of an earlier version, which noted whole files"
    names = sorted({name.partition("~")[0] for name in _changed(old["code"], new["code"])})
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    missing = object()
    return [n for n in sorted({*old, *new}) if old.get(n, missing) != new.get(n, missing)]


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """What nested dicts hold, by dotted name."""
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [pair for name, item in value.items() for pair in flatten(item, f"{prefix}.{name}" if prefix else name)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"
