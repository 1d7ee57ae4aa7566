"""A model on the hub is keyed by its commit: a branch that moves is another model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kd_core.models.loading import ModelSettings
from kd_core.models.revisions import commit_of
from kd_core.models.shapes import T5Shape

FIRST, SECOND = "a" * 40, "b" * 40


class Hub:
    """What stands in for the hub: where its branches are, and what it was asked."""

    def __init__(self) -> None:
        self.branches: dict[str | None, str] = {None: FIRST, "main": FIRST, "v1.0": SECOND}
        self.asked: list[str | None] = []
        self.reachable = True

    def model_info(self, name: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        self.asked.append(revision)
        if not self.reachable:
            raise ConnectionError("no network")
        return SimpleNamespace(sha=self.branches[revision])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit_of.cache_clear()
    yield hub
    commit_of.cache_clear()


def downloaded(root: Path, commit: str) -> None:
    """A model of the hub as its cache holds it."""
    repository = root / "models--some--model"
    for part in ("snapshots", "refs"):
        (repository / part).mkdir(parents=True)
    (repository / "snapshots" / commit).mkdir()
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs" / "main").write_text(commit)


def test_a_branch_that_has_moved_is_another_model(hub: Hub) -> None:
    before = ModelSettings(name="some/model").identity()
    assert before == ModelSettings(name="some/model", revision="main").identity()
    assert before == ModelSettings(name="some/model", revision=FIRST).identity()  # to pin what it is changes nothing
    hub.branches[None] = SECOND
    assert ModelSettings(name="some/model").identity() == before  # one run, one model
    commit_of.cache_clear()  # another run
    assert ModelSettings(name="some/model").identity() == before | {"revision": SECOND}


def test_a_tag_is_resolved_and_a_commit_is_not_asked_for(hub: Hub) -> None:
    assert ModelSettings(name="some/model", revision="v1.0").commit == SECOND
    assert ModelSettings(name="some/model", revision=FIRST).commit == FIRST
    assert hub.asked == ["v1.0"]


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_hub_it_is_what_was_downloaded_last(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    hub.reachable = False
    assert ModelSettings(name="some/model").commit is None  # neither knows: loading says so
    assert ModelSettings(name="some/model", revision="main").commit == "main"
    assert len(hub.asked) == (0 if offline else 2)
    commit_of.cache_clear()
    downloaded(tmp_path, SECOND)
    assert ModelSettings(name="some/model").commit == SECOND


def test_what_is_not_on_the_hub_has_no_commit(hub: Hub, tmp_path: Path) -> None:
    assert ModelSettings(name=str(tmp_path)).commit is None
    assert ModelSettings(shape=T5Shape()).commit is None
    assert hub.asked == []


def test_shapes_of_two_families_that_look_alike_are_two_models() -> None:
    class OtherShape(T5Shape):
        pass

    ours, theirs = T5Shape(), OtherShape()
    assert vars(ours) == vars(theirs)
    assert ModelSettings(shape=ours).identity() != ModelSettings(shape=theirs).identity()
