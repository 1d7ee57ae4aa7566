"""The catalogue: the named runs of a `prefect.yaml`, and what `--set` changes in one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.deployments import ELSEWHERE, deployments, fields_of, is_ours
from flows.settings import nearest

CATALOGUE = "prefect.yaml"


@dataclass(frozen=True, kw_only=True)
class NamedRun:
    """One deployment of the catalogue: what `distill run NAME` and `prefect deployment run distill/NAME` start."""

    name: str
    description: str
    tags: tuple[str, ...]
    parameters: dict[str, Any]
    entrypoint: str

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> NamedRun:
        """The run that a deployment's fields describe; its name is prefixed with `compare/` if it is a comparison."""
        compares = fields["entrypoint"].endswith(":compare")
        return cls(
            name=f"compare/{fields['name']}" if compares else fields["name"],
            description=" ".join(fields["description"].split()),
            tags=tuple(map(str, fields["tags"])),
            parameters=fields["parameters"],
            entrypoint=fields["entrypoint"],
        )

    @property
    def needs(self) -> str:
        """What the run needs beyond this machine's CPU, from its `needs: …` tags."""
        return ", ".join(tag.removeprefix("needs: ") for tag in self.tags if tag.startswith("needs: ")) or "nothing"


def find_catalogue(given: Path | None = None, note: Callable[[str], None] = lambda text: None) -> Path:
    """The catalogue to use: `given`, or prefect.yaml in this folder or one above it, or the one beside this package.

    A file on the way that has no run of ours is another project's: it is passed over, and `note` is told. Raises
    FileNotFoundError; ValueError for a file on the way that is not YAML.
    """
    if given is not None:
        if not given.is_file():
            raise FileNotFoundError(f"there is no catalogue of runs at {given}\ngive the path of a prefect.yaml file")
        return given.resolve()
    here = Path.cwd()
    passed: list[Path] = []
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        path = folder / CATALOGUE
        if not path.is_file():
            continue
        if any(is_ours(entry) for entry in deployments(path) or []):
            for other in passed:
                note(f"{other} names no run of distill; using {path}")
            return path
        passed.append(path)
    raise FileNotFoundError(f"there is no {CATALOGUE} here or above\ncall distill from the project's folder")


def load_catalogue(path: Path) -> dict[str, NamedRun]:
    """The named runs in a prefect.yaml, by name and in the file's order; deployments of other flows are left out.

    Raises ValueError in one line for a file without deployments or without a run of ours, and for one that is badly
    described.
    """
    entries = deployments(path)
    if entries is None:
        raise ValueError(f"{path} has no list of deployments\nsee docs.prefect.io for the form of a prefect.yaml")
    runs: dict[str, NamedRun] = {}
    for number, entry in enumerate(entries, start=1):
        if is_ours(entry):
            run = NamedRun.of(fields_of(entry, f"{path}: deployment {number}"))
            if run.name in runs:
                raise ValueError(f"{path} has two runs called {run.name!r}\nrename one of them")
            runs[run.name] = run
    if not runs:
        raise ValueError(f"{path} names no run of distill: no deployment's entrypoint is a flow of ours\n{ELSEWHERE}")
    return runs


def named_run(catalogue: Mapping[str, NamedRun], name: str) -> NamedRun:
    """The run called `name`; ValueError with the nearest name if there is none."""
    if name in catalogue:
        return catalogue[name]
    raise ValueError(f"there is no run called {name!r}{nearest(name, catalogue)}\nthere are: {', '.join(catalogue)}")


def override(parameters: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`parameters` with each `dotted.name=value` put in; a value is JSON where it can be read as such, else text."""
    result: dict[str, Any] = json.loads(json.dumps(parameters))
    for assignment in assignments:
        result = put(result, *assigned(assignment))
    return result


def assigned(assignment: str) -> tuple[str, Any]:
    """The dotted name and the value of `name=value`. Raises ValueError for what is written otherwise."""
    name, equals, text = assignment.partition("=")
    if not equals or not name or not all(name.split(".")):
        raise ValueError(f"a setting is written name=value, got {assignment!r}\nfor instance: --set seed=3")
    return name, _value(text)


def put(parameters: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """`parameters` with the setting of a dotted name put in."""
    if not all(name.split(".")):
        raise ValueError(f"there is no setting {name!r}\na dotted name has no empty part: method.steps")
    result: dict[str, Any] = json.loads(json.dumps(parameters))
    *path, last = name.split(".")
    place = result
    for step in path:
        if place.get(step) is None:
            place[step] = {}
        place = place[step]
        if not isinstance(place, dict):
            raise ValueError(f"{name} cannot be set: {step} is {place!r}, which has no settings inside")
    place[last] = value
    return result


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
