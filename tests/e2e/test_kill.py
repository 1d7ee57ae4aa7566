"""kill -9 anywhere: the next run goes on, and what comes out is byte for byte what it would have been."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.store.artifacts import Store
from tests.e2e.damage import HOWS, artifacts

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


CHAT_POINTS = ["shard:score:4", "progress:pre_distill:4", "rollouts:llmr:1", "progress:llmr:3", "checkpoint:llmr:2"]


LLAMA_POINTS = [
    "shard:features:2",
    "checkpoint:fine_tune:2",
    "shard:label:1",
    "checkpoint:dagger_train:3",
    "progress:dagger_train[1]:6",
    "shard:dagger_aggregate:2",
    "progress:dagger_train[2]:3",
    "shard:free_run:2",
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


@dataclass(frozen=True)
class Ended:
    """The stores of one recipe, each in a folder of its name, and what was seen of every run in them."""

    folder: Path
    rows: dict[str, list[dict[str, Any]]]

    def home(self, name: str) -> Path:
        return self.folder / name / "home"

    def must_be_as_if_undisturbed(self, name: str, points: list[str]) -> None:
        """Every point has killed its run, or found something to spoil, and the artifacts are the undisturbed ones."""
        rows = self.rows[name]
        assert [row["point"] for row in rows] == [*points, None]
        for row in rows[:-1]:
            assert row["spoilt"] if row["point"].startswith(HOWS) else row["end"] == -signal.SIGKILL, row
        assert artifacts(self.home(name)) == artifacts(self.home("undisturbed"))


def run(recipe: str, folder: Path, **points: list[str]) -> Ended:
    """An undisturbed run, and for each name runs that are killed at its points, and one to the end."""
    given = [f"{name}={','.join(of_name)}" for name, of_name in points.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.killed", recipe, str(folder), *given],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        row = json.loads(line)
        rows.setdefault(row["name"], []).append(row)
    assert {name: each[-1]["end"] for name, each in rows.items()} == dict.fromkeys(("undisturbed", *points), 0), (
        done.stderr
    )
    return Ended(folder, rows)


def stages(home: Path) -> set[str]:
    return {path.name for path in (home / "artifacts").iterdir()}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return run("pairs", tmp_path_factory.mktemp("pairs"), killed=POINTS, spoilt=SPOILT)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return run("text", tmp_path_factory.mktemp("text"), killed=TEXT_POINTS, spoilt=SPOILT_TEXT)


def test_what_was_killed_again_and_again_ends_byte_for_byte_like_what_never_was(pairs: Ended) -> None:
    pairs.must_be_as_if_undisturbed("killed", POINTS)
    assert stages(pairs.home("killed")) == {
        "prepare",
        "teacher",
        "score",
        "pre_distill",
        "llmr",
        "decode",
        "measure",
        "evaluate",
    }


def test_a_run_goes_on_from_the_last_checkpoint_and_not_from_the_start(pairs: Ended) -> None:
    first = {row["point"]: row["from"] for row in pairs.rows["killed"]}
    assert first["progress:teacher:3"]["teacher"] <= 1
    assert first["checkpoint:teacher:2"]["teacher"] == 1  # what it tells first is the step of the checkpoint before
    assert first["progress:score:2"]["teacher"] == 11  # only the last step again: it is saved with the artifact
    assert first["commit:score:1"]["score"] == 32  # the first shard was whole
    assert first["checkpoint:pre_distill:3"]["pre_distill"] > 2
    assert first["checkpoint:llmr:2"]["llmr"] == 1  # likewise
    assert first["commit:llmr:1"]["llmr"] > 3


def test_nothing_half_written_is_left(pairs: Ended) -> None:
    store = Store(pairs.home("killed"))
    for artifact in store.artifacts():
        assert store.damage(artifact) is None
    assert len(list(store.artifacts())) == 12
    assert list((store.root / ".staging").iterdir()) == []
    assert list((store.root / ".checkpoints").iterdir()) == []


def test_killed_anywhere_in_a_round_on_running_text_ends_byte_for_byte_the_same(text: Ended) -> None:
    text.must_be_as_if_undisturbed("killed", TEXT_POINTS)
    assert {"dagger_train", "dagger_aggregate", "label", "features"} <= stages(text.home("killed"))
    went_on = {row["point"]: row["from"] for row in text.rows["killed"][1:]}
    assert went_on["progress:dagger_train[1]:6"]["dagger_train[1]"] > 1  # not from its first update
    assert list((text.home("killed") / ".checkpoints").iterdir()) == []


def test_causal_models_killed_while_they_learn_and_write_end_byte_for_byte_the_same(tmp_path: Path) -> None:
    causal = run("causal", tmp_path, killed=CAUSAL_POINTS)
    causal.must_be_as_if_undisturbed("killed", CAUSAL_POINTS)
    assert {"teacher", "score", "pre_distill", "llmr"} <= stages(causal.home("killed"))


def test_models_that_chat_killed_while_they_learn_and_write_end_byte_for_byte_the_same(tmp_path: Path) -> None:
    chat = run("chat", tmp_path, killed=CHAT_POINTS)
    chat.must_be_as_if_undisturbed("killed", CHAT_POINTS)
    assert {"teacher", "score", "pre_distill", "llmr"} <= stages(chat.home("killed"))


def test_a_llama_killed_anywhere_on_running_text_ends_byte_for_byte_the_same(tmp_path: Path) -> None:
    llama = run("llama", tmp_path, killed=LLAMA_POINTS)
    llama.must_be_as_if_undisturbed("killed", LLAMA_POINTS)
    assert {"dagger_train", "dagger_aggregate", "label", "features"} <= stages(llama.home("killed"))


def test_what_a_killed_build_has_kept_is_looked_at_before_it_is_trusted(pairs: Ended, text: Ended) -> None:
    pairs.must_be_as_if_undisturbed("spoilt", SPOILT)
    text.must_be_as_if_undisturbed("spoilt", SPOILT_TEXT)
