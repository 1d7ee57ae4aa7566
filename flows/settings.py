"""Settings checked against a flow's signature: the objects that it takes, or one line that says what is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

REQUIRED = inspect.Parameter.empty
MAX_SHOWN = 80  # characters of a wrong value that are shown


def signature(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """What a function takes: name → (annotation, default); the default is REQUIRED where there is none."""
    hints = typing.get_type_hints(function, include_extras=True)
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
                raise ValueError(f"the setting {name} is missing\nadd it with --set {name}=… or in prefect.yaml")
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
