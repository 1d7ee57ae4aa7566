"""Settings that a run fills in: their fields say so, and have a value of its own until then."""

from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

Settings = TypeVar("Settings")


def fill(settings: Settings, filled: Callable[["Field[Any]", Any], Any]) -> Settings:
    """`settings`, and all settings inside, with what `filled` says of a field and its value in that value's place."""
    whole: Any = settings
    changes = {}
    for each in fields(whole) if is_dataclass(whole) else ():
        value = getattr(whole, each.name)
        new = filled(each, value)
        new = fill(value, filled) if new is value else new
        if new is not value:
            changes[each.name] = new
    return cast(Settings, replace(whole, **changes)) if changes else settings
