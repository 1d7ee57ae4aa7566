"""Whole runs whose teacher lies on two devices: every stage leaves the bytes of a run whose teacher lies on one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from flows.catalogue import load_catalogue, override
from flows.outlines import execute, outline_of
from flows.settings import validate
from tasks.compute import device
from tasks.compute.models import load_artifact, load_pair
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter
from tests.kd_core.models.backends.two_devices import HOME, OTHER, TwoDevices
from tests.tasks.tiny_models import write_bart, write_llama
from tests.tasks.tiny_texts import run_text

if TYPE_CHECKING:
    from collections.abc import Callable

RECIPES = Path(__file__).parents[2] / "e2e" / "prefect.yaml"
torch.set_num_threads(1)  # tensors this small only lose by being shared out


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's CPU, twice."""
    monkeypatch.setattr(device, "_neighbours", lambda first, num: [first] if num == 1 else [HOME, OTHER])


def run_pairs(home: Path, *changes: str) -> Store:
    named = load_catalogue(RECIPES)["tiny"]
    models = {role: {"name": str(home.parent / role)} for role in ("teacher", "student")}
    given = override({name: x for name, x in named.parameters.items() if name not in models} | models, [*changes])
    outline, store = outline_of(named.entrypoint), Store(home)
    execute(outline, store, "tiny", validate(outline.parameters, given), NullReporter())
    return store


def run_texts(home: Path, *changes: str) -> Store:
    home.mkdir()
    models = (f'{role}={{"name": "{home.parent / role}"}}' for role in ("teacher", "student"))
    run_text(Store(home), *models, "limit=900", "method.rounds=2", *changes)
    return Store(home)


def results(store: Store) -> dict[str, bytes]:
    """What has been made, but for the seconds that it took."""
    names = (path for each in store.artifacts() for path in each.path.rglob("*") if path.suffix != ".json")
    return {str(path.relative_to(store.root)): path.read_bytes() for path in names if is_result(path)}


def is_result(path: Path) -> bool:
    return path.is_file() and path.suffix in (".parquet", ".safetensors", ".npy")


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize(
    ("run", "changes"),
    [
        (run_pairs, ('exposure={"samples": 1, "rows": 8}', "labels.kind=hidden", "pre_distill.alpha=0.5")),
        (run_pairs, ("method.kind=minillm", "method.teacher_mix=0.2")),
        (run_pairs, ("method.kind=gkd",)),
        (run_texts, ("labels.kind=topk",)),
    ],
    ids=["llmr", "minillm", "gkd", "text"],
)
def test_a_run_with_a_spread_teacher_leaves_the_same_bytes(
    tmp_path: Path, run: Callable[..., Store], changes: tuple[str, ...]
) -> None:
    for seed, role in enumerate(("teacher", "student")):
        write_llama(tmp_path / role, seed=seed)
    whole = results(run(tmp_path / "whole", *changes))
    with TwoDevices() as two:
        found = results(run(tmp_path / "spread", *changes, "runtime.device=auto", "runtime.teacher_devices=2"))
    assert two.moves > 100
    assert found.keys() == whole.keys()
    assert [name for name, x in whole.items() if found[name] != x] == []
    assert len(found) > 10


def test_what_a_stage_loads_over_devices_is_spread_and_its_student_is_whole(tmp_path: Path) -> None:
    for role in ("teacher", "student"):
        write_llama(tmp_path / role / "model", layers=4)
    write_bart(tmp_path / "bart" / "model")
    with TwoDevices():
        pair = load_pair(artifact(tmp_path, "teacher"), artifact(tmp_path, "student"), [HOME, OTHER])
        teacher, student = ({x.device for x in each.model.parameters()} for each in pair)
    assert (teacher, student) == ({HOME, OTHER}, {HOME})
    with pytest.raises(
        ValueError, match=r"a model of type 'bart' cannot be spread .*\nleave runtime.teacher_devices at 1"
    ):
        load_artifact(artifact(tmp_path, "bart"), [HOME, OTHER])


def artifact(folder: Path, stage: str) -> Artifact:
    return Artifact(stage, "0" * 16, folder / stage)
