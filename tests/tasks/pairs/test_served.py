"""A teacher behind a server, by vLLM's protocol and SGLang's, from nothing to the table.

The server is ours, over a real tiny model: neither vLLM nor SGLang runs on the machines of these tests, llama.cpp's
server has no log-probabilities of a prompt, and transformers' own has none at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from flows.distill_outline import OUTLINE
from flows.outlines import execute
from flows.settings import validate
from kd_core.losses.rewards import RewardSettings
from kd_core.models.backends.remote import Writing, Written
from kd_core.models.loading import load_tokenizer
from kd_core.models.prompts import Chat
from kd_core.models.shapes import GPTNeoShape
from kd_core.rollout.beam_search import BeamSettings
from kd_core.train.batches import BatchSettings
from tasks.compute.completions import EndpointSettings, read_written
from tasks.compute.models import load_artifact
from tasks.compute.served import Served, ServedModel, load_served, probe_once
from tasks.endpoints import endpoint as endpoints
from tasks.endpoints.address import api_key
from tasks.endpoints.endpoint import EndpointError
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.preflight.served import check_reached, check_served
from tasks.store.artifacts import Artifact, Store, StoreError
from tasks.store.progress import NullReporter
from tasks.store.stage import PlanRow, Run
from tests.tasks import tiny_runs
from tests.tasks.pairs.completions_server import CompletionsServer, Spoil, completions_server
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


def write_teacher(folder: Path, seed: int = 0) -> Path:
    """A tiny Llama whose distributions are far from uniform; no row of its embedding stands for no token."""
    write_llama(folder, seed=seed, vocab_size=300)
    model = LlamaForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data.mul_(50)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


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


@pytest.fixture(scope="module")
def by_weights(tmp_path_factory: pytest.TempPathFactory, directory: Path) -> tuple[Store, Run]:
    store = Store(tmp_path_factory.mktemp("by weights"))
    return store, run(store, TeacherSettings(name=str(directory)))


@pytest.mark.parametrize("log_probs", ["prompt_logprobs", "echo"])
def test_llmr_is_as_with_the_same_teacher_here(
    tmp_path: Path, directory: Path, by_weights: tuple[Store, Run], log_probs: str
) -> None:
    store, (home, here) = Store(tmp_path), by_weights
    with completions_server(directory) as server:
        there = run(store, served(server, directory, log_probs=log_probs))
        assert {body["model"] for body in server.completions} == {"tiny"}
        assert {"echo" in body for body in server.completions if body["max_tokens"] == 1} == {log_probs == "echo"}

    def both(stage: str, name: str) -> tuple[Any, Any]:
        return tuple(pq.read_table(made_by(*each, stage).path / name) for each in ((home, here), (store, there)))  # type: ignore[return-value]

    ours, theirs = both("score", "outputs-00000.parquet")
    assert ours.drop(["log_prob"]).equals(theirs.drop(["log_prob"]))
    assert theirs["log_prob"].to_pylist() == pytest.approx(ours["log_prob"].to_pylist(), abs=1e-4)
    ours, theirs = log_of(made_by(home, here, "llmr")), log_of(made_by(store, there, "llmr"))
    assert {name for _, name in ours.keys() - theirs.keys()} == {
        *(f"validation_{name}" for name in ("teacher_entropy", "reverse_kl", "forward_kl", "overlap")),
        "validation_text_teacher_entropy",
    }
    assert theirs == pytest.approx({place: ours[place] for place in theirs}, abs=1e-4)
    ours, theirs = both("llmr", "rollouts.parquet")
    for name in ("gain", "reward", "q_value", "value"):
        assert theirs[name].to_pylist() == pytest.approx(ours[name].to_pylist(), rel=1e-6, abs=1e-5)
    known, found = metrics(home, here), metrics(store, there)
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
        METHOD,
        steps=4,
        batch=BatchSettings(micro_batches=2),
        sampling=replace(METHOD.sampling, max_new_tokens=24),
        keep="reward",
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


def test_a_chat_that_its_tokenizer_has_no_template_for_is_refused_by_the_settings_name(
    tmp_path: Path, directory: Path
) -> None:
    teacher = replace(served("http://127.0.0.1:9/v1", directory), chat=Chat())
    with pytest.raises(ValueError, match=r"^teacher\.chat: .* has no chat template, and is to read a chat\ngive a"):
        run(Store(tmp_path), teacher)


# what was paid for is not asked again


def test_a_server_that_dies_costs_nothing_that_was_paid_for(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of LLMR, whose rollouts are judged as they come; and the key is written nowhere."""

    def dies(number: int, path: str, body: Any, answer: Any) -> tuple[int, Any]:
        return (200, answer) if number < 105 else (500, {"error": {"message": f"out of memory: {KEY}"}})

    monkeypatch.setenv("MY_VLLM_KEY", KEY)
    store, patience = Store(tmp_path), {"key_env": "MY_VLLM_KEY", "requests_in_flight": 1}
    with completions_server(directory, dies) as server:
        with pytest.raises(EndpointError, match=r"500: out of memory: \[key\] .*; \d+ of \d+ answers are kept"):
            run(store, served(server, directory, retries=0, **patience))
        looks = [i for i, body in enumerate(server.completions) if len(body["prompt"]) > 60]  # before each stage's own
        paid = {json.dumps(body) for body in server.completions[looks[-1] + 1 : -1]}
        assert set(server.keys) == {f"Bearer {KEY}"}
    made = {path.parent.name for path in (store.root / "artifacts").glob("*/*")}
    assert "pre_distill" in made
    assert "llmr" not in made
    with completions_server(directory) as server:
        done = run(store, served(server, directory, **patience))
        asked = {json.dumps(body) for body in server.completions}
    assert {each.stage for each in done.stages if each.outcome == "built"}.isdisjoint(made)
    assert len(paid) > 5
    assert paid & asked == set()
    again = run(store, served("http://127.0.0.1:9/v1", directory))  # where nobody answers, and nobody is asked
    assert {each.outcome for each in again.stages} == {"hit"}
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []
    report = (store.root / "reports" / f"{again.run_id}.html").read_text()
    assert "tiny (behind a server)" in report


def test_another_model_under_the_same_name_is_not_believed(tmp_path: Path, directory: Path) -> None:
    def dies(number: int, path: str, body: Any, answer: Any) -> tuple[int, Any]:
        return (200, answer) if number < 30 else (500, {"error": {"message": "gone"}})

    store, other = Store(tmp_path), write_teacher(tmp_path / "other", seed=1)
    with completions_server(directory, dies) as server, pytest.raises(EndpointError):
        run(store, served(server, directory, retries=0))
    with completions_server(other) as server, pytest.raises(StoreError) as caught:
        run(store, served(server, directory))
    first, second = str(caught.value).splitlines()
    assert re.search(
        r"is not the one that was there before: its log-probabilities of \d+ known tokens are .* apart", first
    )
    assert second.startswith(
        "serve the same model again, or call it otherwise there (teacher.endpoint.model), or delete"
    )


# what a server is, before it is believed


def tampered(change: Callable[[Any], object], at: str = "/v1/completions") -> Spoil:
    def spoil(number: int, path: str, body: Any, answer: Any) -> tuple[int, Any]:
        if path == at:
            change(answer if at == "/tokenize" else answer["choices"][0])
        return 200, answer

    return spoil


def fails(status: int, message: str, path: str = "/v1/completions") -> Spoil:
    return lambda number, asked, body, answer: (
        (status, {"error": {"message": message}}) if asked == path else (200, answer)
    )


ALL = r"does not answer with log-probabilities of all \d+ tokens that it was sent, but with .* \(asked 2 times\)"
LLAMA_CPP = "vLLM answers so, and SGLang under teacher.endpoint.log_probs=echo; llama.cpp's server does not"


@pytest.mark.parametrize(
    ("spoil", "problem", "advice"),
    [
        (
            tampered(lambda answer: answer["tokens"].__setitem__(3, 7), "/tokenize"),
            r"has another tokenizer: token 3 of a text is 7 there, and \d+ \('.*'\) by teacher.tokenizer",
            "name the tokenizer of the model that is served, and a student that has it",
        ),
        (
            tampered(lambda answer: answer["tokens"].append(7), "/tokenize"),
            r"has another tokenizer: token \d+ of a text is 7 there, and nothing by teacher.tokenizer",
            "name the tokenizer",
        ),
        (
            fails(404, "Not Found", "/tokenize"),
            r"refuses the request \(404\): Not Found",
            "check teacher.endpoint.model",
        ),
        (tampered(lambda choice: choice.update(prompt_logprobs=None)), ALL, LLAMA_CPP),
        (tampered(lambda choice: choice.update(prompt_logprobs=None, logprobs=None)), ALL, LLAMA_CPP),
        (tampered(lambda choice: choice["prompt_logprobs"].pop()), ALL, LLAMA_CPP),
        (tampered(lambda choice: choice["prompt_logprobs"][5].clear()), ALL, LLAMA_CPP),
        (
            tampered(lambda choice: choice["prompt_logprobs"].reverse()),
            ALL,
            LLAMA_CPP,
        ),  # of other tokens than were sent
        (tampered(lambda choice: choice["logprobs"]["top_logprobs"].clear()), ALL, LLAMA_CPP),
        (
            fails(404, "no model tiny"),
            r"refuses the request \(404\): no model tiny",
            "check teacher.endpoint.model, and",
        ),
        (fails(400, "prompt must be a text"), r"refuses the request \(400\)", "it must take token ids as prompt"),
        (fails(401, "no"), r"does not accept the key \(401\)", "check TEACHER_API_KEY"),
        (
            fails(503, "loading"),
            r"answers 503: loading \(asked 2 times\)",
            "see that it runs and that teacher.endpoint.url",
        ),
    ],
)
def test_a_server_that_is_not_what_is_wanted_is_told_so_before_anything_starts(
    directory: Path, spoil: Spoil, problem: str, advice: str
) -> None:
    with completions_server(directory, spoil) as server, pytest.raises(ValueError, match="teacher") as caught:
        check_reached(served(server, directory), [PlanRow("score", "", "miss")])
    first, second = str(caught.value).splitlines()
    assert re.search(rf"^the teacher at {server.url} {problem}", first)
    assert second.startswith(advice)


def test_a_server_that_is_down_is_told_so_before_anything_starts(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(
        EndpointError, match=r"^the teacher at http://127.0.0.1:9/v1 cannot be reached: .* \(asked 2 times\)\n"
    ):
        run(Store(tmp_path), served("http://127.0.0.1:9/v1", directory))
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_a_server_that_is_down_is_asked_twice_however_often_a_run_would(directory: Path) -> None:
    teacher = served("http://127.0.0.1:9/v1", directory, retries=9)
    with pytest.raises(EndpointError, match=r" \(asked 2 times\)\n"):
        check_reached(teacher, [PlanRow("score", "", "miss")])


def test_a_name_without_a_domain_is_of_this_network_and_needs_no_key(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # the judge's, which no other server is to see
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)
    settings = served("http://gpu7:8000/v1", directory).endpoint
    assert settings is not None
    assert api_key("the teacher", settings.base_url, settings.key_env) is None


def test_what_it_ends_in_is_part_of_what_it_is(tmp_path: Path) -> None:
    """A generation config that names other ends makes it write other texts."""
    directory = write_chat(tmp_path / "served", vocab_size=302)
    before = served("http://127.0.0.1:9/v1", directory).identity()
    generation = directory / "generation_config.json"
    told = json.loads(generation.read_text(encoding="utf-8"))
    generation.write_text(json.dumps(told | {"eos_token_id": [0, 7]}), encoding="utf-8")
    after = served("http://127.0.0.1:9/v1", directory).identity()
    assert before != after
    assert {name for name in before if before[name] != after[name]} == {"ends"}


def test_its_artifact_alone_says_that_it_is_elsewhere(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "reference.json").write_text(
        json.dumps({"name": str(directory), "revision": None, "dtype": "float32", "content": None, "served": "tiny"})
    )
    with pytest.raises(ValueError, match="is behind a server\nsay where that is"):
        load_artifact(Artifact("teacher", "0", tmp_path), torch.device("cpu"))


def test_a_server_elsewhere_needs_its_key(directory: Path) -> None:
    settings = served("https://teachers.example/v1", directory, key_env="MY_VLLM_KEY")
    with pytest.raises(ValueError, match=r"teachers\.example/v1 needs a key\nset MY_VLLM_KEY"):
        check_reached(settings, [PlanRow("decode[llmr]", "", "miss")])
    check_reached(settings, [PlanRow("score", "", "hit"), PlanRow("measure[llmr]", "", "miss")])  # nothing to ask


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"url": "localhost:8000"}, "url must be a URL such as"),
        ({"url": f"http://me:{KEY}@host/v1"}, "url must hold no user, password"),
        ({"key_env": KEY}, "key_env must be the name of a variable"),
        ({"key_env": "hf_AbCdEfGhIjKl"}, "key_env must be the name of a variable"),
        ({"model": " "}, "model must be the name"),
        ({"log_probs": "none"}, "log_probs must be prompt_logprobs or echo, got 'none'"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"requests_in_flight": 0}, "requests_in_flight must be at least 1"),
        ({"timeout_seconds": 0}, "timeout_seconds must be in"),
    ],
)
def test_an_endpoint_that_cannot_be_one_is_refused(directory: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        served("http://127.0.0.1:9/v1", directory, **changes)
    assert KEY not in str(caught.value)


def test_what_is_told_of_a_teacher_must_fit_together(directory: Path) -> None:
    endpoint = EndpointSettings(url="http://localhost:8000/v1", model="tiny")
    with pytest.raises(ValueError, match="needs endpoint and tokenizer, got one of them"):
        TeacherSettings(endpoint=endpoint)
    with pytest.raises(ValueError, match="needs endpoint and tokenizer, got one of them"):
        TeacherSettings(name=str(directory), tokenizer=str(directory))
    with pytest.raises(ValueError, match="has neither name, shape nor fit of its own"):
        TeacherSettings(name=str(directory), endpoint=endpoint, tokenizer=str(directory))


# what takes more than it gives


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"method": {"kind": "reverse_kl"}}, "reverse_kl learns from its distributions"),
        ({"method": {"kind": "forward_kl"}}, "forward_kl learns from its distributions"),
        ({"method": {"kind": "gkd"}, "labels": {"kind": "topk"}}, "gkd asks for its likeliest tokens after what"),
        (
            {"method": {"kind": "js", "keep": "reverse_kl"}, "labels": {"kind": "topk", "tail": "bucket"}},
            "method.keep reverse_kl takes its whole distribution",
        ),
        ({"method": {"kind": "minillm"}}, "minillm learns from its whole distribution"),
        ({"method": replace(METHOD, reward=REWARD, reverse_kl=0.1)}, "method.reverse_kl takes"),
        ({"method": replace(METHOD, reward=REWARD, keep="reverse_kl")}, "method.keep reverse_kl takes"),
        ({"method": METHOD}, "method.reward takes more than log-probabilities"),
        ({"evaluation": tiny_runs.EVALUATION}, "evaluation.reward takes more than log-probabilities"),
        ({"evaluation": {"reward": REWARD, "decoding": {"num_beams": 4}}}, "evaluation.decoding asks for beam search"),
        ({"score": tiny_runs.SCORE}, "score.beam asks for beam search or a ban on repeats"),
        (
            {"score": replace(tiny_runs.SCORE, beam=replace(GREEDY, no_repeat_ngram_size=3))},
            "score.beam asks for beam search or a ban on repeats",
        ),
        ({"labels": {"kind": "hidden"}}, "labels of kind hidden take its states"),
        ({"labels": {"kind": "sampled"}}, "labels of kind sampled take its whole distribution"),
        ({"exposure": {}}, "exposure takes its whole distribution"),
        ({"student": {"from": "teacher", "layers": 1}}, "a student from: teacher is made of its weights"),
        ({"student": {"shape": {"d_model": 16}}}, "an encoder–decoder's teacher is one too"),
    ],
)
def test_what_takes_more_than_a_server_gives_is_refused_before_it_is_asked(
    tmp_path: Path, directory: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match="server") as caught:
        run(Store(tmp_path), served("http://127.0.0.1:9/v1", directory), **changes)
    first, second = str(caught.value).splitlines()
    assert first.startswith(problem)
    assert first.endswith(", and the teacher is behind a server")
    assert second
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_beams_that_an_evaluation_by_samples_never_searches_are_no_problem(tmp_path: Path, directory: Path) -> None:
    evaluation = {"reward": REWARD, "sampling": {"max_new_tokens": 6}, "decoding": {"num_beams": 4}}
    settings = settings_of(Store(tmp_path), served("http://127.0.0.1:9/v1", directory), evaluation=evaluation)
    check_served(settings)
    with pytest.raises(ValueError, match=r"^evaluation.decoding asks for beam search"):
        check_served(settings | {"evaluation": replace(settings["evaluation"], sampling=None)})


def test_labels_are_not_told_by_text(tmp_path: Path, directory: Path) -> None:
    """Which some tokens share."""
    teacher = served("http://127.0.0.1:9/v1", directory, log_probs="echo")
    problem = r"^labels take token ids, and log_probs echo tells tokens by their text, and .*\nserve it by vLLM"
    with pytest.raises(ValueError, match=problem):
        run(Store(tmp_path), teacher, labels={"kind": "topk"}, method={"kind": "forward_kl"})


def test_a_student_with_another_tokenizer_is_refused(tmp_path: Path, directory: Path) -> None:
    student = StudentSettings(name=str(write_chat(tmp_path / "student", vocab_size=302)))
    with pytest.raises(ValueError, match="teacher and student have different tokenizers: 300 and 302 tokens"):
        run(Store(tmp_path / "store"), served("http://127.0.0.1:9/v1", directory), student=student)


# what it writes


def asking(folder: Path, server: CompletionsServer, directory: Path) -> ServedModel:
    """A model that asks, whose teacher is noted as it should be."""
    settings = served(server, directory).endpoint
    assert settings is not None
    noted = {"probe": probe_once(settings, load_tokenizer(directory))}
    (folder / "reference.json").write_text(json.dumps(noted))
    return load_served(Served("teacher", "0", folder, settings), directory, None, folder / "answers")[0]


def test_samples_are_drawn_as_they_are_told_from_seeds(
    tmp_path: Path, directory: Path, server: CompletionsServer
) -> None:
    model, prompts = asking(tmp_path, server, directory), [[5, 6, 0], [5, 6, 0], [7, 0]]
    how = Writing(max_new_tokens=5, temperature=1.5, top_k=7, top_p=0.9, seeds=[1, 2, 1])
    first = model.write(prompts, how)
    assert first[0] != first[1]
    bodies = [body for body in server.completions if body["max_tokens"] == 5]
    assert {(body["temperature"], body["top_k"], body["top_p"], body["repetition_penalty"]) for body in bodies} == {
        (1.5, 7, 0.9, 1.0)
    }
    assert sorted(body["seed"] for body in bodies) == [1, 1, 2]
    assert model.write(prompts, how) == first
    assert len([body for body in server.completions if body["max_tokens"] == 5]) == 3


def test_what_a_server_writes_is_read_from_its_ids_or_its_text(directory: Path) -> None:
    tokenizer, end = load_tokenizer(directory), 0

    def read(**choice: Any) -> Written:
        payload = {"choices": [{"text": "the cat", "finish_reason": "stop", "logprobs": None} | choice]}
        return read_written(payload, tokenizer, 300, [end, 5], 4)

    ids = tokenizer("the cat")["input_ids"]
    assert read() == Written([*ids, end], truncated=False)  # the end that it cut off is put back
    assert read(token_ids=[9, 8, 5], logprobs={"token_logprobs": [-1.0, -0.5, 0.0]}) == Written([9, 8, 5], False, -1.5)
    assert read(token_ids=[9, 8], finish_reason="length") == Written([9, 8], truncated=True)
    for wrong in ({"finish_reason": "abort"}, {"token_ids": [300]}, {"token_ids": [], "finish_reason": "length"}):
        with pytest.raises(ValueError, match="no "):
            read(**wrong)
