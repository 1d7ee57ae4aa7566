"""Settings checked against a signature: the objects, and the one-line refusals."""

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from flows import settings
from flows.outlines import MODULES, outline_of
from tasks.pairs.student import StudentSettings
from tasks.ranges import OF_NAME, SEEDS


@dataclass(frozen=True, kw_only=True)
class Shape:
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    d_model: int = 8


@dataclass(frozen=True, kw_only=True)
class Other:
    """Another kind of shape, told apart by its names alone."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    width: int
    heads: int = 1


@dataclass(frozen=True, kw_only=True)
class Method:
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    learning_rate: float = 1e-5
    value: str = "max"
    shape: Shape | Other | None = None

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    threads: int | None = None


def outline(method: Method, prompt: str, runtime: Runtime = Runtime(), seed: int = 0) -> None:
    """What stands in for the flow's signature."""


KNOWN = settings.signature(outline)
GOOD: dict[str, Any] = {"method": {"learning_rate": 1e-4}, "prompt": "Say: {source}"}


def refusal(parameters: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        settings.validate(KNOWN, parameters)
    return str(caught.value)


def test_valid_parameters_become_settings_objects_with_the_defaults_filled_in() -> None:
    valid = settings.validate(KNOWN, GOOD | {"runtime": {"threads": 2}})
    assert valid == {
        "method": Method(learning_rate=1e-4),
        "prompt": "Say: {source}",
        "runtime": Runtime(threads=2),
        "seed": 0,
    }
    assert settings.jsonable(valid)["method"] == {"learning_rate": 1e-4, "value": "max", "shape": None}
    assert settings.validate(KNOWN, settings.jsonable(valid)) == valid  # what `resume` relies on


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": {"learnin_rate": 1}}, "no setting method.learnin_rate; did you mean method.learning_rate?"),
        ({"method": {"shape": {"dmodel": 1}}}, "no setting method.shape.dmodel; did you mean method.shape.d_model?"),
        ({"sed": 1}, "no setting sed; did you mean seed?"),
        ({"method": {"learning_rate": -1}}, "method: learning_rate must be > 0, got -1.0"),
        ({"method": {"learning_rate": "fast"}}, "method.learning_rate: input should be a valid number"),
        ({"method": {"shape": {"d_model": 1.5}}}, "method.shape.d_model: input should be a valid integer"),
        ({"method": {"shape": {"widht": 1}}}, "no setting method.shape.widht; did you mean method.shape.width?"),
        ({"method": {"shape": {"width": 1.5, "heads": 2}}}, "method.shape.width: input should be a valid integer"),
        ({"method": {"shape": {"d_model": 1, "width": 2}}}, "method.shape.width: unexpected keyword argument, got 2"),
        ({"method": {"shape": {"heads": 2}}}, "the setting method.shape.width is missing"),
        ({"seed": "x"}, "seed: input should be a valid integer"),
        ({"method": 3}, "method: input should be a"),
    ],
)
def test_a_wrong_setting_is_named_in_the_first_line(change: dict[str, Any], told: str) -> None:
    assert told in refusal(GOOD | change).splitlines()[0]


def test_a_missing_setting_is_named_unless_its_name_was_misspelt() -> None:
    assert refusal({"prompt": "x"}).startswith("the setting method is missing\nadd it with --set method=")
    assert refusal({"prompt": "x", "metod": {}}).startswith("there is no setting metod; did you mean method?\n")


def test_the_second_line_lists_what_there_is() -> None:
    assert refusal(GOOD | {"method": {"zzz": 1}}).splitlines() == [
        "there is no setting method.zzz",
        "method has: learning_rate, value, shape",
    ]


def test_a_number_that_no_library_holds_is_refused_and_long_values_are_cut() -> None:
    assert refusal(GOOD | {"method": {"learning_rate": float("nan")}}) == (
        "method.learning_rate must be a finite number, got nan"
    )
    assert refusal(GOOD | {"seed": 2**64 - 1}).startswith("seed must be in [0, 9223372036854775807], got 1844674407370")
    assert len(refusal(GOOD | {"seed": "x" * 10_000})) < 200


def test_every_seed_of_every_flow_has_one_range() -> None:
    for entrypoint in MODULES:
        parameters = outline_of(entrypoint).parameters
        hints = {name: hint for name, (hint, _) in parameters.items()}
        seeds = [name for name in _numbers(hints) if "seed" in name.rpartition(".")[2]]
        assert seeds
        assert {OF_NAME.get(name.rpartition(".")[2]) for name in seeds} == {SEEDS}


def _numbers(hints: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of the settings that take a number."""
    for name, hint in hints.items():
        if int in (hint, *typing.get_args(hint)):
            yield prefix + name
        yield from _numbers(settings._inside(hint), f"{prefix}{name}.")


def test_a_setting_whose_name_is_a_word_of_python_is_told_and_recorded_by_it() -> None:
    known = {"student": (StudentSettings, StudentSettings(from_="teacher"))}
    run = settings.validate(known, {"student": {"from": "teacher"}})
    assert run["student"].from_ == "teacher"
    assert settings.jsonable(run)["student"]["from"] == "teacher"
    assert settings.validate(known, settings.jsonable(run)) == run
    with pytest.raises(ValueError, match=r"there is no setting student\.form; did you mean student\.from\?"):
        settings.validate(known, {"student": {"form": "teacher"}})
    with pytest.raises(ValueError, match="neither name, revision nor shape"):
        settings.validate(known, {"student": {"from": "teacher", "name": "a/b"}})
