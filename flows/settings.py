"""Settings checked against a flow's signature: the objects that it takes, or one line that says what is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

REQUIRED = inspect.Parameter.empty
MAX_SHOWN = 80  # characters of a wrong value that are shown
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's types of errors
MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


def signature(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """What a function takes: name → (annotation, default); the default is REQUIRED where there is none."""
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: (hints[name], each.default) for name, each in inspect.signature(function).parameters.items()}


def validate(known: Mapping[str, tuple[Any, Any]], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` as the objects that the signature `known` asks for, its defaults included.

    Raises ValueError in one line for an unknown name (with the nearest known one), a missing one, or a bad value.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    from tasks.ranges import check_numbers

    fields: dict[str, Any] = {
        name: (hint, ... if default is REQUIRED else default) for name, (hint, default) in known.items()
    }
    model = create_model("Run", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        run = model.model_validate(dict(parameters))
    except ValidationError as error:
        raise ValueError(_first(error.errors(), {name: hint for name, (hint, _) in known.items()})) from None
    valid = {name: getattr(run, name) for name in known}
    for name, value in valid.items():
        _check_booleans(name, parameters.get(name), value)
        check_numbers(name, value)
    return valid


def jsonable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Validated parameters as plain JSON values, complete with defaults, for the record of a run."""
    from pydantic import TypeAdapter
    from pydantic_core import to_jsonable_python

    return {  # settings by their class, which knows that `from_` is called `from`
        name: TypeAdapter(type(value)).dump_python(value, mode="json", by_alias=True)
        if dataclasses.is_dataclass(value)
        else to_jsonable_python(value)
        for name, value in parameters.items()
    }


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean …?`, or nothing where no known name comes near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _check_booleans(name: str, given: Any, valid: Any) -> None:
    """Refuse true and false that pydantic has made a number of, in `given` or anywhere inside it."""
    if isinstance(given, bool) and not isinstance(valid, bool) and isinstance(valid, int | float):
        raise ValueError(f"{name} must be a number, got {str(given).lower()}")
    if isinstance(given, Mapping):
        for inner, item in given.items():
            found = valid.get(inner) if isinstance(valid, Mapping) else getattr(valid, str(inner), None)
            _check_booleans(f"{name}.{inner}", item, found)
    elif isinstance(given, list | tuple) and isinstance(valid, list | tuple):
        for item, found in zip(given, valid, strict=False):
            _check_booleans(name, item, found)


def _first(errors: Sequence[Any], known: Mapping[str, Any]) -> str:
    """The line for the first of pydantic's errors; an unknown name comes first, since it explains what is missing.

    known: name → hint of each parameter. In a union, a name is unknown only if no class has it.
    """
    for error in errors:
        path, names = _place(error["loc"][:-1], known)
        if error["type"] in UNKNOWN and error["loc"][-1] not in names:
            return _unknown(path, str(error["loc"][-1]), names)
    error = next((each for each in errors if each["type"] not in UNKNOWN), errors[0])
    return _message(".".join(_place(error["loc"], known)[0]), error)


def _unknown(path: Sequence[str], name: str, names: Mapping[str, Any]) -> str:
    prefix = "".join(f"{step}." for step in path)
    what = ".".join(path) or "a run"
    return f"there is no setting {prefix}{name}{nearest(name, names, prefix)}\n{what} has: {', '.join(names)}"


def _message(where: str, error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in a line that names the setting `where` it is."""
    given = _short(error["input"])
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}"
    if error["type"] == "union_tag_invalid":
        kind, kinds = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"there is no {where} of kind {kind!r}{nearest(kind, kinds)}\n{where}.kind is one of: {', '.join(kinds)}"
    if error["type"] in MISSING:
        if isinstance(error["loc"][-1], int):
            return f"{where}: it takes more values than that, got {given}"
        return f"the setting {where} is missing\nadd it with --set {where}=… or in prefect.yaml"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, got {given}"


def _place(loc: Sequence[int | str], known: Mapping[str, Any]) -> tuple[list[str], Mapping[str, Any]]:
    """The names of the settings that an error lies in, and those (name → hint) that the innermost one has.

    A name that the user gave, in a mapping, is one too. What pydantic names in between, the class of a union that it
    tried or the place in a list, is none.
    """
    path: list[str] = []
    names, hint = known, None
    for step in loc:
        if step in names:
            path.append(str(step))
            hint = names[str(step)]
            names = _inside(hint)
        elif (values := _values(hint)) is not None:
            path.append(str(step))
            hint = values
            names = _inside(hint)
        else:
            names = _inside(hint, step)
    return path, names


def _values(hint: Any) -> Any:
    """What lies under the names that a user gives, in a setting that is a mapping; None for another."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _values(parts[0])
    return parts[1] if origin in (dict, Mapping) else None


def _inside(hint: Any, tag: int | str | None = None) -> dict[str, Any]:
    """The settings in a setting, name → hint: of its class, of all classes of a union, or of the one that has `tag`."""
    from pydantic import Tag

    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        tags = {each.tag for each in parts[1:] if isinstance(each, Tag)}
        return _inside(parts[0], tag) if tag is None or not tags or tag in tags else {}
    if origin in (typing.Union, types.UnionType):
        return {name: inner for part in parts for name, inner in _inside(part, tag).items()}
    if not dataclasses.is_dataclass(hint):
        return {}
    hints = typing.get_type_hints(hint, include_extras=True)
    return {field.name.removesuffix("_"): hints[field.name] for field in dataclasses.fields(hint)}


def _short(value: Any) -> str:
    """A value as text, cut to MAX_SHOWN characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
