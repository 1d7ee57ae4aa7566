"""`distill accept`: what only code keeps from being a hit becomes one, and nothing else does."""

import json
import os
import time
from pathlib import Path

import pytest

from flows.cli.main import main
from tasks.store import accept as accepting
from tasks.store import fingerprint, keys, maintenance
from tasks.store.artifacts import MANIFEST, Artifact, Store
from tasks.store.fingerprint import Code
from tasks.store.runs import read_runs
from tasks.store.stage import Build, PlanRow, open_run, stage

DAY = 86400


@stage
def grown(build: Build, seed: int) -> None:
    (build.dir / "model").mkdir()
    (build.dir / "model" / "weights").write_text(f"weights {seed}")


@stage
def read(build: Build, corpus: Artifact, size: int) -> None:
    (build.dir / "text").write_text((corpus.path / "model" / "weights").read_text() * size)


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Code]]:
    """What the stages' code is, to be changed by a test."""
    now = {name: {name: Code("1", "tasks/any.py"), "shared": Code("1", "kd_core/any.py")} for name in ("grown", "read")}

    def reached(module: str, name: str) -> dict[str, Code]:
        return now[name]

    monkeypatch.setattr(fingerprint, "reached", reached)
    monkeypatch.setattr(accepting, "reached", reached)
    places = {"grown": [("any", frozenset({"seed"}))], "read": [("any", frozenset({"corpus", "size"}))]}
    monkeypatch.setattr(accepting, "stages", lambda: places)
    return now


@pytest.fixture
def store(tmp_path: Path, code: dict[str, dict[str, Code]]) -> Store:
    """A store that has been filled, and whose stages' code has then changed."""
    filled = Store(tmp_path / "home")
    run(filled)
    code["grown"]["shared"] = Code("2", "kd_core/any.py")
    code["read"]["read"] = Code("2", "tasks/any.py")
    return filled


def run(store: Store, *, size: int = 2, planning: bool = False, seed: int = 0) -> list[PlanRow]:
    with open_run(store, name="mine", planning=planning) as opened:
        read(corpus=grown(seed=seed), size=size)
    return opened.plan


def statuses(store: Store, **changes: int) -> list[str]:
    return [row.status for row in run(store, planning=True, **changes)]


def accept_all(store: Store, **chosen: str) -> list[bool]:
    return [accepting.accept(store, each, "by hand") for each in accepting.acceptable(store, **chosen)]


def test_all_that_only_code_kept_from_being_a_hit_is_one_and_a_changed_setting_is_not(store: Store) -> None:
    assert statuses(store) == ["miss", "miss"]
    assert [each.why for each in accepting.acceptable(store)] == [
        "code: shared (kd_core/any.py)",
        "code: read (tasks/any.py)",
    ]
    assert accept_all(store) == [True, True]
    assert statuses(store) == ["hit", "hit"]
    assert statuses(store, size=3) == ["hit", "miss"]
    assert statuses(store, seed=1) == ["miss", "miss"]
    assert accepting.acceptable(store) == []
    assert list(maintenance.verify(store)) == []


def test_the_manifest_keeps_what_it_was_and_by_what_command_and_the_plan_says_so(store: Store) -> None:
    old = {each.stage: each.manifest() for each in store.artifacts()}
    accept_all(store)
    new = {each.stage: each.manifest() for each in store.artifacts() if each.manifest().accepted}
    for name, manifest in new.items():
        (entry,) = manifest.accepted
        assert (entry["key"], entry["code"]) == (old[name].key, old[name].key_record["code"])
        assert entry["inputs"] == old[name].key_record["inputs"]
        assert entry["command"] == "by hand"
        assert manifest.key == keys.key_of(manifest.key_record)
        assert (manifest.created, manifest.files, manifest.inputs) == (
            old[name].created,
            old[name].files,
            old[name].inputs,
        )
    assert [row.why for row in run(store, planning=True)] == [f"code accepted on {entry['at'][:10]}"] * 2


def test_a_second_change_can_be_accepted_too_and_both_are_kept(store: Store, code: dict[str, dict[str, Code]]) -> None:
    accept_all(store)
    code["grown"]["grown"] = Code("3", "tasks/any.py")
    assert statuses(store) == ["miss", "miss"]
    whys = [each.why for each in accepting.acceptable(store)]
    assert whys == ["code: grown (tasks/any.py)", "follows its inputs"]
    accept_all(store)
    assert statuses(store) == ["hit", "hit"]
    assert sorted(len(each.manifest().accepted) for each in store.artifacts()) == [0, 0, 1, 1, 2, 2]


def test_of_one_stage_alone_what_was_built_from_it_follows_and_keeps_its_own_code(store: Store) -> None:
    items = accepting.acceptable(store, stage="grown")
    assert [each.why for each in items] == ["code: shared (kd_core/any.py)", "follows its inputs"]
    accept_all(store, stage="grown")
    assert statuses(store) == ["hit", "miss"]
    assert run(store, planning=True)[1].why == "code: read"
    accept_all(store)
    assert statuses(store) == ["hit", "hit"]


def test_of_one_run_alone(store: Store, code: dict[str, dict[str, Code]]) -> None:
    run(store, seed=5)  # another one, with the code of now
    code["grown"]["shared"] = Code("3", "kd_core/any.py")
    last = {each.key for each in read_runs(store)[-1].stages}
    assert len(accepting.acceptable(store, used=last)) == 2
    assert len(accepting.acceptable(store)) == 4


def test_of_several_that_would_be_the_same_the_newest_is_taken(store: Store, code: dict[str, dict[str, Code]]) -> None:
    time.sleep(0.01)
    run(store)
    code["grown"]["shared"] = Code("3", "kd_core/any.py")
    code["read"]["shared"] = Code("3", "kd_core/any.py")
    newest = max(store.artifacts("grown"), key=lambda each: each.manifest().created)
    items = [each for each in accepting.acceptable(store) if each.artifact.stage == "grown"]
    assert [each.artifact for each in items] == [newest]


def test_what_is_damaged_is_not_accepted(store: Store) -> None:
    (artifact,) = store.artifacts("grown")
    items = accepting.acceptable(store)
    (artifact.path / "model" / "weights").write_text("weights 9")
    assert not accepting.accept(store, items[0], "by hand")
    assert [each.artifact.stage for each in accepting.acceptable(store)] == ["read"]


def test_what_was_accepted_stays_while_a_run_refers_to_what_it_was(store: Store) -> None:
    accept_all(store)
    assert maintenance.unreferenced(store, days=1, grace_hours=0) == []
    for path in (store.root / "runs").glob("*.json"):
        path.unlink()
    assert len(maintenance.unreferenced(store, days=1, grace_hours=0)) == 4


def test_a_flip_in_what_is_shared_is_found_under_both_names(store: Store) -> None:
    accept_all(store)
    for artifact in store.artifacts("grown"):
        path = artifact.path / "model" / "weights"
        path.write_text("weights 9")
        os.utime(path)
        break
    assert {each.artifact.stage for each in maintenance.verify(store)} >= {"grown"}
    assert not [each for each in store.artifacts("grown") if each.path.exists()]


def test_the_command_lists_asks_and_does(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(store.root))
    assert main(["accept"]) == 0
    said = capsys.readouterr().out
    assert "shared (kd_core/any.py)" in said
    assert "nothing was changed; --yes accepts without asking" in said
    assert main(["accept", "--stage", "grown", "--yes"]) == 0
    assert "2 artifacts are hits" in capsys.readouterr().out
    recorded = [json.loads((each.path / MANIFEST).read_text())["accepted"] for each in store.artifacts()]
    assert {each["command"] for entries in recorded for each in entries} == {"distill accept --stage grown --yes"}
    assert main(["accept", "--yes"]) == 0
    capsys.readouterr()
    assert main(["accept"]) == 0
    assert capsys.readouterr().out == "no artifact is kept from being a hit by code alone\n"
    assert main(["accept", "--run", "absent"]) == 1
