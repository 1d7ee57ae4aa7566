"""A teacher behind a server, by vLLM's protocol and SGLang's, from nothing to the table.

The server is ours, over a real tiny model: neither vLLM nor SGLang runs on the machines of these tests, llama.cpp's
server has no log-probabilities of a prompt, and transformers' own has none at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.distill_outline import OUTLINE
from flows.outlines import execute
from flows.settings import validate
from kd_core.losses.rewards import RewardSettings
from kd_core.models.prompts import Chat
from kd_core.models.shapes import GPTNeoShape
from kd_core.rollout.beam_search import BeamSettings
from kd_core.train.batches import BatchSettings
from tasks.compute.completions import EndpointSettings
from tasks.endpoints import endpoint as endpoints
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter
from tasks.store.stage import Run
from tests.tasks import tiny_runs
from tests.tasks.pairs.completions_server import CompletionsServer, completions_server
from tests.tasks.tiny_models import write_chat, write_llama
from tests.tasks.tiny_runs import METHOD, made_by, write_pairs

STUDENT = StudentSettings(shape=GPTNeoShape(hidden_size=16, num_heads=2, window_size=8))
REWARD = RewardSettings(truncated="bootstrap", centre="log_probs")
GREEDY = BeamSettings(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=6)
KEY = "sk-secret-0123456789-do-not-write-down"


@pytest.fixture(autouse=True)
def quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses; nothing from the environment of whoever runs the tests."""
    monkeypatch.setattr(endpoints, "FIRST_PAUSE_SECONDS", 0.01)
    for name in [name for name in os.environ if name.startswith("OPENAI_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("teacher"), vocab_size=300)  # no row that stands for no token


@pytest.fixture
def server(directory: Path) -> Iterator[CompletionsServer]:
    with completions_server(directory) as running:
        yield running


def served(server: CompletionsServer | str, directory: Path, **more: Any) -> TeacherSettings:
    url = server if isinstance(server, str) else server.url
    endpoint = EndpointSettings(**({"url": url, "model": "tiny", "retries": 1} | more))
    return TeacherSettings(endpoint=endpoint, tokenizer=str(directory))


def settings_of(store: Store, teacher: TeacherSettings, **changes: Any) -> dict[str, Any]:
    """A tiny run's parameters, complete."""
    given = {
        "dataset": write_pairs(store.root / "pairs.csv"),
        "teacher": teacher,
        "student": STUDENT,
        "score": replace(tiny_runs.SCORE, beam=GREEDY),
        "pre_distill": tiny_runs.TRAINING,
        "method": replace(METHOD, reward=REWARD),
        "evaluation": replace(tiny_runs.EVALUATION, reward=REWARD),
        "runtime": tiny_runs.RUNTIME,
    }
    return validate(OUTLINE.parameters, given | changes)


def run(store: Store, teacher: TeacherSettings, **changes: Any) -> Run:
    return execute(OUTLINE, store, "tiny", settings_of(store, teacher, **changes), NullReporter())[0]


def metrics(store: Store, ran: Run) -> dict[tuple[str, str], dict[str, Any]]:
    rows = pq.read_table(made_by(store, ran, "evaluate").path / "metrics.parquet").to_pylist()
    return {(row["system"], row["metric"]): row for row in rows}


def log_of(artifact: Artifact) -> dict[tuple[int, str], float]:
    rows = pq.read_table(artifact.path / "training_log.parquet").to_pylist()
    return {(row["step"], row["metric"]): row["value"] for row in rows}


# from nothing to the table


@pytest.mark.parametrize("log_probs", ["prompt_logprobs", "echo"])
def test_llmr_is_as_with_the_same_teacher_here(tmp_path: Path, directory: Path, log_probs: str) -> None:
    store = Store(tmp_path)
    here = run(store, TeacherSettings(name=str(directory)))
    with completions_server(directory) as server:
        there = run(store, served(server, directory, log_probs=log_probs))
        assert {body["model"] for body in server.completions} == {"tiny"}
        assert {"echo" in body for body in server.completions if body["max_tokens"] == 1} == {log_probs == "echo"}
    for name in ("outputs-00000.parquet",):
        ours, theirs = (pq.read_table(made_by(store, each, "score").path / name) for each in (here, there))
        assert ours.drop(["log_prob"]).equals(theirs.drop(["log_prob"]))
        assert theirs["log_prob"].to_pylist() == pytest.approx(ours["log_prob"].to_pylist(), abs=1e-4)
    ours, theirs = (log_of(made_by(store, each, "llmr")) for each in (here, there))
    absent = {name for _, name in ours.keys() - theirs.keys()}
    assert absent == {
        *(f"validation_{name}" for name in ("teacher_entropy", "reverse_kl", "forward_kl", "overlap")),
        "validation_text_teacher_entropy",
    }
    assert theirs == pytest.approx({place: ours[place] for place in theirs}, abs=1e-5)
    ours, theirs = (pq.read_table(made_by(store, each, "llmr").path / "rollouts.parquet") for each in (here, there))
    for name in ("gain", "reward", "q_value", "value"):
        assert theirs[name].to_pylist() == pytest.approx(ours[name].to_pylist(), abs=1e-5)
    known, found = metrics(store, here), metrics(store, there)
    assert known.keys() == found.keys()
    for (system, name), row in found.items():
        if name in ("teacher_entropy", "reverse_kl", "forward_kl", "overlap"):
            assert (row["value"], row["note"]) == (None, "not measured: the teacher is behind a server")
        else:
            assert row["value"] == pytest.approx(known[system, name]["value"], abs=1e-4), (system, name)


def test_under_baseline_value_it_is_the_papers_reward(
    tmp_path: Path, directory: Path, server: CompletionsServer
) -> None:
    """The student is told the same by centred logits, of which the server knows nothing."""
    store, paper = Store(tmp_path), RewardSettings(baseline="value", truncated="drop")
    method = replace(
        METHOD, steps=4, batch=BatchSettings(micro_batches=2), sampling=replace(METHOD.sampling, max_new_tokens=24)
    )
    here = run(store, TeacherSettings(name=str(directory)), method=replace(method, reward=paper))
    there = run(store, served(server, directory), method=replace(method, reward=replace(paper, centre="log_probs")))
    ours, theirs = (log_of(made_by(store, each, "llmr")) for each in (here, there))
    assert sum(ours[step, "tokens"] for step in range(1, 5)) > 0
    for step in range(1, 5):
        for name in ("loss", "grad_norm", "tokens", "length"):
            assert theirs[step, name] == pytest.approx(ours[step, name], abs=1e-6), (step, name)


def test_it_reads_and_ends_as_its_chat_template_says(tmp_path: Path) -> None:
    chat, store = write_chat(tmp_path / "chat", vocab_size=302), Store(tmp_path / "store")
    reads = {"chat": Chat(user="Say {source}", system="Be brief.")}
    here = run(store, TeacherSettings(name=str(chat), **reads))
    with completions_server(chat) as server:
        there = run(store, replace(served(server, chat), **reads))
        stops = next(body["stop_token_ids"] for body in server.completions if "stop_token_ids" in body)
    ours, theirs = (log_of(made_by(store, each, "llmr")) for each in (here, there))
    assert theirs == pytest.approx({place: ours[place] for place in theirs}, abs=1e-5)
    assert len(stops) > 1
