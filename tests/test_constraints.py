"""constraints.txt says what this project is tested with; this fails when what is installed has drifted from it."""

import re
from importlib import metadata
from pathlib import Path

import pytest

PINS = dict(
    line.split("==")
    for line in (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(name: str) -> str | None:
    """The version, without the label of a local build (2.13.0+cpu)."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


@pytest.mark.parametrize("name", ["prefect", "fastapi", "torch", "transformers", "tokenizers", "duckdb", "pyarrow"])
def test_what_matters_most_is_pinned_and_installed_as_pinned(name: str) -> None:
    assert installed(name) == PINS[name]


def test_nothing_installed_differs_from_its_pin() -> None:
    drifted = {name: (pin, installed(name)) for name, pin in PINS.items() if installed(name) not in (pin, None)}
    assert drifted == {}


def test_every_dependency_of_ours_is_pinned() -> None:
    requirements = metadata.requires("distill-llm") or []
    names = {canonical(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}
    assert names - {canonical(name) for name in PINS} == set()
