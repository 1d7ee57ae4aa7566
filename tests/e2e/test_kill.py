"""kill -9 anywhere: the next run goes on, and what comes out is byte for byte what it would have been."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.store.artifacts import MANIFEST, Store
from tasks.store.files import file_hash

PROJECT = Path(__file__).parents[2]
POINTS = [
    "progress:teacher:3",
    "checkpoint:teacher:2",
    "commit:teacher:1",
    "progress:score:2",
    "shard:score:4",
    "hash:score:2",
    "commit:score:1",
    "progress:pre_distill:4",
    "checkpoint:pre_distill:3",
    "commit:pre_distill:1",
    "rollouts:llmr:1",
    "progress:llmr:3",  # after an odd step: its rollouts are used a second time
    "checkpoint:llmr:2",
    "rollouts:llmr:2",
    "commit:llmr:1",
    "progress:decode[pre_distilled]:1",
    "commit:measure:2",
    "commit:evaluate:1",
]


TEXT_POINTS = [
    "commit:tokens:1",
    "checkpoint:language_model:2",
    "progress:language_model[teacher]:5",
    "shard:features:2",
    "commit:features:1",
    "checkpoint:fine_tune:2",
    "shard:label:2",
    "commit:label:1",
    "checkpoint:dagger_train:3",
    "progress:dagger_train[1]:6",
    "commit:dagger_train:1",
    "shard:dagger_aggregate:1",
    "shard:dagger_aggregate:4",
    "commit:dagger_aggregate:1",
    "progress:dagger_train[2]:3",
    "commit:dagger_train:1",
    "shard:free_run:2",
    "commit:evaluate:1",
]
CAUSAL_POINTS = [
    "checkpoint:teacher:2",
    "shard:score:4",
    "progress:pre_distill:4",
    "progress:llmr:3",
    "checkpoint:llmr:2",
]


SPOILT = [  # killed, spoilt and killed again, until the stage has met every kind of damage
    *("checkpoint:teacher:3", "flip:teacher", "checkpoint:teacher:3", "truncate:teacher"),
    *("shard:score:3", "flip:score", "shard:score:3", "truncate:score", "shard:score:3", "delete:score"),
    *("checkpoint:llmr:3", "flip:llmr", "checkpoint:llmr:3", "delete:llmr"),
]
SPOILT_TEXT = [
    *("shard:features:3", "flip:features", "shard:label:2", "truncate:label"),
    *("checkpoint:dagger_train:3", "flip:dagger_train"),
    *("shard:dagger_aggregate:4", "flip:dagger_aggregate", "shard:dagger_aggregate:4", "truncate:dagger_aggregate"),
    *("shard:free_run:2", "flip:free_run"),
]


def run(recipe: str, home: Path, *points: str) -> list[dict[str, Any]]:
    home.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.killed", recipe, str(home), *points],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[-1]["end"] == 0, done.stderr
    return rows


def contents(home: Path) -> dict[str, str]:
    """Hash of every file of every artifact; manifests hold times and are left out."""
    return {
        str(path.relative_to(home)): file_hash(path)
        for path in sorted((home / "artifacts").rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    run("pairs", home)
    return home


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    home = tmp_path_factory.mktemp("killed") / "home"
    return home, run("pairs", home, *POINTS)


def test_every_point_really_killed_its_run(killed: tuple[Path, list[dict[str, Any]]]) -> None:
    ends = {row["point"]: row["end"] for row in killed[1]}
    assert ends == dict.fromkeys(POINTS, -signal.SIGKILL) | {None: 0}


def test_what_was_killed_again_and_again_ends_byte_for_byte_like_what_never_was(
    undisturbed: Path, killed: tuple[Path, list[dict[str, Any]]]
) -> None:
    expected, found = contents(undisturbed), contents(killed[0])
    assert {path.split("/")[1] for path in expected} == {
        "prepare",
        "teacher",
        "score",
        "pre_distill",
        "llmr",
        "decode",
        "measure",
        "evaluate",
    }
    assert found == expected


def test_a_run_goes_on_from_the_last_checkpoint_and_not_from_the_start(
    killed: tuple[Path, list[dict[str, Any]]],
) -> None:
    first = {row["point"]: row["from"] for row in killed[1]}
    assert first["progress:teacher:3"]["teacher"] <= 1
    assert first["checkpoint:teacher:2"]["teacher"] == 2  # killed at what it told third: tokenizer, step 1, step 2
    assert first["progress:score:2"]["teacher"] == 12  # only the last step again: it is saved with the artifact
    assert first["commit:score:1"]["score"] == 32  # the first shard was whole
    assert first["checkpoint:pre_distill:3"]["pre_distill"] > 2
    assert first["checkpoint:llmr:2"]["llmr"] > 2
    assert first["commit:llmr:1"]["llmr"] > 3


def test_nothing_half_written_is_left(killed: tuple[Path, list[dict[str, Any]]]) -> None:
    store = Store(killed[0])
    for artifact in store.artifacts():
        assert store.damage(artifact) is None
    assert len(list(store.artifacts())) == 12
    assert list((store.root / ".staging").iterdir()) == []
    assert list((store.root / ".checkpoints").iterdir()) == []


def test_killed_anywhere_in_a_round_on_running_text_ends_byte_for_byte_the_same(tmp_path: Path) -> None:
    rows = run("text", tmp_path / "killed" / "home", *TEXT_POINTS)
    assert [(row["point"], row["end"]) for row in rows] == [
        *((point, -signal.SIGKILL) for point in TEXT_POINTS),
        (None, 0),
    ]
    run("text", tmp_path / "undisturbed" / "home")
    expected, found = contents(tmp_path / "undisturbed" / "home"), contents(tmp_path / "killed" / "home")
    assert {"dagger_train", "dagger_aggregate", "label", "features"} <= {path.split("/")[1] for path in expected}
    assert found == expected
    went_on = {row["point"]: row["from"] for row in rows[1:]}
    assert went_on["progress:dagger_train[1]:6"]["dagger_train[1]"] > 1  # not from its first update
    assert list((tmp_path / "killed" / "home" / ".checkpoints").iterdir()) == []


def test_causal_models_killed_while_they_learn_and_write_end_byte_for_byte_the_same(tmp_path: Path) -> None:
    rows = run("causal", tmp_path / "killed" / "home", *CAUSAL_POINTS)
    assert [row["end"] for row in rows] == [-signal.SIGKILL] * len(CAUSAL_POINTS) + [0]
    run("causal", tmp_path / "undisturbed" / "home")
    expected, found = contents(tmp_path / "undisturbed" / "home"), contents(tmp_path / "killed" / "home")
    assert {"teacher", "score", "pre_distill", "llmr"} <= {path.split("/")[1] for path in expected}
    assert found == expected


@pytest.mark.parametrize(("recipe", "points"), [("pairs", SPOILT), ("text", SPOILT_TEXT)])
def test_what_a_killed_build_has_kept_is_looked_at_before_it_is_trusted(
    tmp_path: Path, recipe: str, points: list[str], request: pytest.FixtureRequest
) -> None:
    rows = run(recipe, tmp_path / "spoilt" / "home", *points)
    for row in rows[:-1]:
        assert row.get("spoilt") or row.get("end") == -signal.SIGKILL, row
    if recipe == "pairs":
        whole = request.getfixturevalue("undisturbed")
    else:
        whole = tmp_path / "undisturbed" / "home"
        run(recipe, whole)
    assert contents(tmp_path / "spoilt" / "home") == contents(whole)
