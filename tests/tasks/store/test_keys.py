"""Why a stage would be built: the differences that matter, in a line."""

from pathlib import Path
from typing import Any

import pytest

from tasks.store.artifacts import Artifact, Store
from tasks.store.keys import difference, explain
from tasks.store.stage import Build, open_run, stage


@stage
def made(build: Build, source: str) -> None:
    (build.dir / "text").write_text(source)


@stage
def taken(build: Build, corpus: Artifact, teacher: Artifact, settings: dict[str, Any]) -> None:
    (build.dir / "text").write_text(str(settings))


SETTINGS = {f"s{number:02}": number for number in range(20)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def why(store: Store, corpus: str = "a", teacher: str = "b", **changes: Any) -> str:
    with open_run(store, name="mine", planning=True) as run:
        taken(corpus=made(source=corpus), teacher=made(source=teacher), settings=SETTINGS | changes)
    return run.plan[-1].why


@pytest.fixture
def built(store: Store) -> Store:
    with open_run(store, name="mine"):
        taken(corpus=made(source="a"), teacher=made(source="b"), settings=SETTINGS)
    return store


def test_few_differences_are_all_said(built: Store) -> None:
    assert why(built) == ""
    assert why(built, s03=4) == "setting: settings.s03 3 → 4"
    assert why(built, "x", "y", s03=4) == "setting: settings.s03 3 → 4; input: corpus; input: teacher"


def test_of_many_the_first_three_settings_and_their_number(built: Store) -> None:
    changes = {f"s{number:02}": None for number in range(1, 17)}
    first = "; ".join(f"setting: settings.s{number:02} {number} → null" for number in (1, 2, 3))
    assert why(built, **changes) == f"{first}; and 13 more"
    assert why(built, "x", **changes) == f"{first}; and 14 more"


def test_what_shares_no_input_and_few_settings_is_another_recipe(built: Store, store: Store) -> None:
    changes = {f"s{number:02}": None for number in range(6)}
    assert why(built, "x", "y", **changes) == "nothing like it was built yet"
    assert "and 4 more" in why(built, "x", "b", **changes)  # the same teacher: six settings and an input
    del changes["s05"]
    assert why(built, "x", "y", **changes) == "nothing like it was built yet"
    del changes["s04"]  # less than a quarter of the settings, and two inputs
    assert "and 3 more" in why(built, "x", "y", **changes)


def test_the_nearest_is_the_one_that_is_compared_with(built: Store) -> None:
    with open_run(built, name="mine"):
        taken(corpus=made(source="x"), teacher=made(source="y"), settings=SETTINGS | {"s19": 0})
    assert why(built, "x", "y", s19=1) == "setting: settings.s19 0 → 1"


def test_nothing_at_all_is_said_as_before(store: Store) -> None:
    assert why(store) == "nothing built yet"
    assert explain(store, "absent", {}) == ["nothing built yet"]


def test_settings_in_place_of_null_are_said_once() -> None:
    old, new = ({"settings": settings, "inputs": {}, "code": {}} for settings in ({"a": None}, {"a": {"b": 1}}))
    assert difference(old, new) == ["setting: a.b null → 1"]
    assert difference(new, old) == ["setting: a.b 1 → null"]


def test_a_record_that_cannot_be_read_explains_nothing(built: Store) -> None:
    for artifact in built.artifacts("taken"):
        manifest = artifact.path / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"inputs": {', '"inputs": [], "was": {'))
    assert why(built, s03=4) == "nothing built yet"
