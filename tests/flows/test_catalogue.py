"""Named runs: the catalogue, and `--set`."""

from pathlib import Path
from typing import Any

import pytest

from flows.catalogue import find_catalogue, load_catalogue, named_run, override


def test_overrides_reach_into_nested_settings_and_leave_the_catalogue_alone() -> None:
    base: dict[str, Any] = {"method": {"learning_rate": 1e-4}, "runtime": None}
    changed = override(
        base,
        [
            "method.learning_rate=1e-5",
            "method.value=max",
            "runtime.threads=2",
            "seed=3",
            "limit=null",
            'prompt="5"',
            "a=b=c",
        ],
    )
    assert changed == {
        "method": {"learning_rate": 1e-5, "value": "max"},
        "runtime": {"threads": 2},
        "seed": 3,
        "limit": None,
        "prompt": "5",
        "a": "b=c",
    }
    assert base == {"method": {"learning_rate": 1e-4}, "runtime": None}


@pytest.mark.parametrize("assignment", ["seed", "=3", "method..x=1", ".seed=1"])
def test_an_assignment_that_is_none_is_refused(assignment: str) -> None:
    with pytest.raises(ValueError, match="a setting is written name=value"):
        override({}, [assignment])


def test_setting_inside_a_plain_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"seed\.deep cannot be set: seed is 3"):
        override({"seed": 3}, ["seed.deep=1"])


CATALOGUE = """
definitions:
  shared: &shared {entrypoint: "flows/distill.py:distill"}
deployments:
  - name: small
    <<: *shared
    description: >
      A small one.
      It is quick.
  - name: big
    <<: *shared
    tags: ["needs: hub", "needs: GPU", llmr]
    parameters: {seed: 1}
"""


def test_the_catalogue_is_read_with_its_anchors(tmp_path: Path) -> None:
    path = tmp_path / "prefect.yaml"
    path.write_text(CATALOGUE)
    runs = load_catalogue(path)
    assert list(runs) == ["small", "big"]
    assert runs["small"].description == "A small one. It is quick."
    assert (runs["small"].needs, runs["big"].needs) == ("nothing", "hub, GPU")
    assert named_run(runs, "big").parameters == {"seed": 1}
    with pytest.raises(ValueError, match="there is no run called 'smal'; did you mean small"):
        named_run(runs, "smal")


@pytest.mark.parametrize("text", ["", "a: [", "deployments: 3"])
def test_a_file_that_is_no_catalogue_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prefect.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"prefect\.yaml"):
        load_catalogue(path)


def test_the_catalogue_is_found_from_a_folder_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prefect.yaml").write_text(CATALOGUE)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert find_catalogue() == tmp_path / "prefect.yaml"
    with pytest.raises(FileNotFoundError, match=r"no catalogue of runs at nowhere\.yaml"):
        find_catalogue(Path("nowhere.yaml"))
