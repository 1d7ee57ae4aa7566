"""Named runs: from the catalogue (`prefect.yaml`), with `--set` overrides, checked against the flow's signature."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.deployments import ELSEWHERE, deployments, fields_of, is_ours

CATALOGUE = "prefect.yaml"
REQUIRED = inspect.Parameter.empty
MAX_SHOWN = 80  # characters of a wrong value that are shown


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
        """The run of a deployment's fields: called by its name, after `compare/` where it is one of that flow."""
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

    A file on the way that has no run of ours is another project's: `note` is told that it is passed over. Raises
    FileNotFoundError; ValueError for a file on the way that is no YAML, of which nobody can tell whose it is.
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

    Raises ValueError in one line for what is no prefect.yaml, has no run of ours, or describes one badly.
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
        name, equals, text = assignment.partition("=")
        if not equals or not name or not all(name.split(".")):
            raise ValueError(f"a setting is written name=value, got {assignment!r}\nfor instance: --set seed=3")
        result = put(result, name, _value(text))
    return result


def put(parameters: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """`parameters` with the setting of a dotted name put in."""
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


def signature(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """What a function takes: name → (annotation, default); the default is REQUIRED where there is none."""
    hints = typing.get_type_hints(function)
    return {name: (hints[name], each.default) for name, each in inspect.signature(function).parameters.items()}


def validate(known: Mapping[str, tuple[Any, Any]], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` as the objects that the signature `known` asks for, its defaults included.

    Raises ValueError in one line for an unknown name (with the nearest known one), a missing one, or a bad value.
    """
    from pydantic import TypeAdapter, ValidationError

    from tasks.ranges import check_numbers

    _check_names("", parameters, list(known))
    valid: dict[str, Any] = {}
    for name, (hint, default) in known.items():
        if name not in parameters:
            if default is REQUIRED:
                raise ValueError(f"the setting {name} is missing\nadd it with --set {name}=… or in {CATALOGUE}")
            valid[name] = default
            continue
        hint = _of_kind(name, parameters[name], hint)
        _check_names_inside(name, parameters[name], hint)
        try:
            valid[name] = TypeAdapter(hint).validate_python(parameters[name])
        except ValidationError as error:
            raise ValueError(_first_error(name, error.errors())) from None
        check_numbers(name, valid[name])
    return valid


def jsonable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Validated parameters as plain JSON values, complete with defaults, for the record of a run."""
    from pydantic_core import to_jsonable_python

    result: dict[str, Any] = to_jsonable_python(dict(parameters))
    return result


def _check_names_inside(prefix: str, value: Any, hint: Any) -> None:
    """Refuse names that no settings object in `hint` (a dataclass, or a union with some) has."""
    classes = list(_settings_classes(hint))
    if not classes or not isinstance(value, Mapping):
        return
    known = {
        field.name: typing.get_type_hints(each)[field.name] for each in classes for field in dataclasses.fields(each)
    }
    _check_names(f"{prefix}.", value, list(known))
    for name, inner in value.items():
        _check_names_inside(f"{prefix}.{name}", inner, known[name])


def _of_kind(name: str, value: Any, hint: Any) -> Any:
    """Of a union of settings told apart by `kind`, the one that `value` names; the first where it names none.

    What is then said of a wrong value speaks of that one alone.
    """
    hints = {each: typing.get_type_hints(each).get("kind") for each in _settings_classes(hint)}
    kinds = {kind: each for each, literal in hints.items() for kind in typing.get_args(literal)}
    if len(kinds) < 2 or isinstance(value, tuple(kinds.values())):
        return hint
    kind = str(value.get("kind", next(iter(kinds)))) if isinstance(value, Mapping) else next(iter(kinds))
    if kind in kinds:
        return kinds[kind]
    raise ValueError(
        f"there is no {name} of kind {kind!r}{nearest(kind, kinds)}\n{name}.kind is one of: {', '.join(kinds)}"
    )


def _settings_classes(hint: Any) -> Iterator[type]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType, typing.Annotated):
        for each in typing.get_args(hint):
            yield from _settings_classes(each)
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint


def _check_names(prefix: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            what = prefix.rstrip(".") or "a run"
            raise ValueError(
                f"there is no setting {prefix}{name}{nearest(name, known, prefix)}\n{what} has: {', '.join(known)}"
            )


def nearest(name: str, known: Sequence[str] | Mapping[str, Any], prefix: str = "") -> str:
    """`; did you mean …?`, or nothing where no known name comes near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _first_error(name: str, errors: Sequence[Any]) -> str:
    """The first of pydantic's errors, in one line that starts with the setting's dotted name."""
    error = errors[0]
    # pydantic names the classes that it tried along the way too (Shape); ours are the lower-case steps
    where = ".".join([name, *(str(step) for step in error["loc"] if isinstance(step, str) and step.islower())])
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}"
    if error["type"] == "missing" and isinstance(error["loc"][-1], int):
        return f"{where}: it takes more values than that, got {_short(error['input'])}"
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"the setting {where} is missing"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, got {_short(error['input'])}"


def _short(value: Any) -> str:
    """What was given, in a piece of a line."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
