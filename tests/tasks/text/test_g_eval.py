"""The stage `g_eval` in a tiny run, against a real server: what a judge was paid for is kept, whatever happens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.endpoints.endpoint import EndpointError
from tasks.store.artifacts import Artifact, Store
from tests.tasks.judge.chat_server import Answer, Asked, ChatServer, chat_server, fails, says
from tests.tasks.tiny_texts import run_text

CHANGES = ("evaluation.judge.criteria=papers", "evaluation.judge.max_windows=5", "evaluation.judge.retries=0")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment of whoever runs the tests."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


class Judge:
    """Judges by the length of a text; from request `breaks` on it fails."""

    def __init__(self) -> None:
        self.breaks: float = float("inf")

    def __call__(self, asked: Asked) -> Answer:
        return fails(500) if asked.number >= self.breaks else says(f"Score: {1 + len(asked.text) % 5}")


@pytest.fixture
def judge() -> Judge:
    return Judge()


@pytest.fixture
def server(judge: Judge) -> Iterator[ChatServer]:
    with chat_server(judge) as server:
        yield server


def run(store: Store, server: ChatServer) -> list[Artifact]:
    """The artifacts of g_eval after a tiny run."""
    run_text(store, *CHANGES, f"evaluation.judge.base_url={server.base_url}")
    return list(store.artifacts("g_eval"))


def contents(artifacts: list[Artifact]) -> dict[str, bytes]:
    return {each.key: (each.path / "verdicts.parquet").read_bytes() for each in artifacts}


def test_a_judge_that_fails_in_the_middle_is_asked_for_the_rest_alone(
    tmp_path: Path, judge: Judge, server: ChatServer
) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = contents(run(Store(tmp_path / "whole"), server))
    num_asked = len(server.asked)
    judge.breaks = num_asked + 8
    with pytest.raises(EndpointError, match=r"of 10 answers are kept"):
        run(Store(tmp_path / "broken"), server)
    judge.breaks = float("inf")
    before = len(server.asked)
    assert contents(run(Store(tmp_path / "broken"), server)) == whole
    kept = 7  # of 8 questions that were answered the first is the check, and so is that of the second run
    assert len(server.asked) - before == num_asked - kept


def test_what_was_judged_once_is_not_asked_again_though_the_artifact_is_gone(
    tmp_path: Path, server: ChatServer
) -> None:
    store = Store(tmp_path)
    first = run(store, server)
    before, rows = contents(first), [pq.read_table(each.path / "verdicts.parquet").to_pylist() for each in first]
    assert [[row["continuation"] for row in each] for each in rows] == [["system"] * 5 + ["true"] * 5] * len(first)
    assert len({row["score"] for each in rows for row in each}) > 1
    for each in first:
        shutil.rmtree(each.path)
    num_asked = len(server.asked)
    assert contents(run(store, server)) == before
    assert len(server.asked) == num_asked + 1, "the check before the run"
