"""How many tokens are read and written: said once for a run, and again only by a setting that differs from it.

A field made by `source_length` or `target_length` is 0 until it is given: the run's length, which `Lengths.fill` puts
in its place before anything is called. What reads or writes tokens refuses a 0, whoever calls it.
"""

from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, TypeVar

from kd_core.filling import fill

Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How many tokens the stages of a run read and write, wherever their own settings do not say."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    source: int = 512  # of each source, its end of sequence included; what is longer is cut
    target: int = 64  # of what is written for a source, or learnt from

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def fill(self, settings: Settings) -> Settings:
        """`settings`, and all settings inside, with these lengths where none was given."""

        def filled(each: "Field[Any]", value: Any) -> Any:
            side = each.metadata.get("length")
            return getattr(self, side) if side is not None and value == 0 else value

        return fill(settings, filled)


def source_length() -> int:
    """A field: the tokens of each source that are read."""
    return _length("source")


def target_length() -> int:
    """A field: the tokens that are written for a source, or learnt from."""
    return _length("target")


def _length(side: Literal["source", "target"]) -> int:
    return field(default=0, metadata={"length": side, "description": f"in tokens; 0 = the run's lengths.{side}"})


def check_lengths(settings: Any) -> None:
    """Raises ValueError for a length of `settings` that is below 0."""
    for each in fields(settings):
        if "length" in each.metadata and getattr(settings, each.name) < 0:
            raise ValueError(f"{each.name} must be at least 1, or 0 for the run's, got {getattr(settings, each.name)}")


def require_length(name: str, tokens: int) -> None:
    """Raises ValueError for a length that tokens are to be read or written by, and that nobody has given."""
    if tokens < 1:
        raise ValueError(
            f"{name} must be at least 1, got {tokens}\n0 is for a run to fill in: Lengths(…).fill(settings)"
        )
