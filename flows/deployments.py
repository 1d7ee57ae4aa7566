"""Reads the deployments of a prefect.yaml, maybe another project's: which are flows of ours, and their fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from flows.outlines import MODULES

LONGEST_NAME = 200  # bytes: run ids and files begin with it, and file systems take 255
ELSEWHERE = "name another file with --prefect-file"


def deployments(path: Path) -> list[Any] | None:
    """The entries of a prefect.yaml; None where it has no list of them. Raises ValueError for what is no YAML."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}\nmend it, or {ELSEWHERE}") from None
    deployments = content.get("deployments") if isinstance(content, dict) else None
    return deployments if isinstance(deployments, list) else None


def is_ours(entry: Any) -> bool:
    """Whether a deployment is of one of our flows; `entry` may be any value that YAML has."""
    entrypoint = entry.get("entrypoint") if isinstance(entry, dict) else None
    return isinstance(entrypoint, str) and entrypoint in MODULES


def fields_of(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Entrypoint, name, description, tags and parameters of a deployment of ours; what is left out is empty.

    `where` names it in an error. Raises ValueError for a field of another type, and for parameters that are not JSON.
    """
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where} has no name, which must be a text\ngive it one: name: my-run")
    if not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"{where} has a name that no file can bear: {name[:LONGEST_NAME]!r}\ngive it a shorter one")
    found = {"entrypoint": entry["entrypoint"], "name": name}
    for field, kind, form in (
        ("description", str, "a text"),
        ("tags", list, "a list"),
        ("parameters", dict, "settings"),
    ):
        found[field] = kind() if entry.get(field) is None else entry[field]
        if not isinstance(found[field], kind):
            raise ValueError(f"{where}, {name!r}: {field} must be {form}, got {type(found[field]).__name__}")
    try:
        json.dumps(found["parameters"])
    except (TypeError, ValueError, RecursionError) as error:  # a date, a set, an anchor inside itself
        raise ValueError(f"{where}, {name!r}: its parameters are no plain settings: {error}") from None
    return found
