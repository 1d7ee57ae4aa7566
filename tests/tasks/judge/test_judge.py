"""The judge of G-Eval against a real server on 127.0.0.1 that answers well, badly, late or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flows.settings import signature, validate
from kd_core.metrics.g_eval.reply import Verdict
from tasks.endpoints import endpoint as judge_endpoint
from tasks.endpoints.answers import Answers
from tasks.endpoints.endpoint import EndpointError
from tasks.engine.local import told
from tasks.judge.judge import check_judge, judge_texts, why_no_judge
from tasks.judge.settings import Item, JudgeSettings, api_key
from tasks.store.keys import key_record
from tests.tasks.judge.chat_server import Answer, Asked, ChatServer, Judge, chat_server, fails, says

KEY = "sk-secret-0123456789-do-not-write-down"
ITEMS = [
    Item(context=f"Winter came to the keep, year {i}.", continuation=f" The wolves, {i}, howled") for i in range(12)
]


@pytest.fixture(autouse=True)
def quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses; nothing from the environment of whoever runs the tests."""
    monkeypatch.setattr(judge_endpoint, "FIRST_PAUSE_SECONDS", 0.01)
    for name in [name for name in os.environ if name.startswith("OPENAI_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A store's root, in which the key is nowhere when the test is over."""
    yield tmp_path
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


def settings(server: ChatServer | str, **changes: Any) -> JudgeSettings:
    url = server if isinstance(server, str) else server.base_url
    return JudgeSettings(**({"criteria": "asoif", "base_url": url, "retries": 2, "timeout_seconds": 60} | changes))


def judged(
    root: Path, settings: JudgeSettings, items: Sequence[Item], progress: Callable[[int], object] = lambda done: None
) -> list[Verdict]:
    for done, verdicts in told(judge_texts(root, settings, items)):
        if verdicts is not None:
            return verdicts
        progress(done)
    raise AssertionError


def well(asked: Asked) -> Answer:
    """A score that depends on the text, so that answers that change places are seen."""
    return says(f"It is dark.\nScore: {score_of(asked.text)}")


def score_of(text: str) -> int:
    number = int(text.split("wolves, ")[1].split(",")[0])
    return 1 + number % 5


EXPECTED = [(i % 5) / 4 for i in range(len(ITEMS))]


# asked and answered


def test_scores_come_in_the_order_of_the_items_and_are_asked_for_once(root: Path) -> None:
    with chat_server(well) as server:
        seen: list[int] = []
        verdicts = judged(root, settings(server), ITEMS, seen.append)
        assert [verdict.score for verdict in verdicts] == EXPECTED
        assert {verdict.outcome for verdict in verdicts} == {"written"}
        assert verdicts[3].text == "It is dark.\nScore: 4"
        assert seen[-1] == 12
        assert seen == sorted(seen)
        assert judged(root, settings(server), [*ITEMS, ITEMS[0]])[:12] == verdicts
        assert len(server.asked) == 12


def test_what_is_all_known_needs_neither_endpoint_nor_key(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(well) as server:
        verdicts = judged(root, settings(server), ITEMS)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert judged(root, settings(server), ITEMS) == verdicts


def test_equal_items_are_one_request(root: Path) -> None:
    with chat_server(well) as server:
        verdicts = judged(root, settings(server), [ITEMS[2]] * 5)
        assert [verdict.score for verdict in verdicts] == [0.5] * 5
        assert len(server.asked) == 1


def test_the_request_is_the_protocols(root: Path) -> None:
    with chat_server(well) as server:
        judged(root, settings(server, model="judge-7b"), ITEMS[:1])
        judged(root, settings(server, temperature=None, top_logprobs=0, max_reply_tokens=None), ITEMS[:1])
    first, second = server.asked
    assert first.path == "/v1/chat/completions"
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.body.pop("messages")[0]["role"] == "user"
    assert first.body == {
        "model": "judge-7b",
        "temperature": 0.0,
        "max_completion_tokens": 512,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert second.body.keys() == {"model", "messages"}


def test_scores_are_weighted_where_the_endpoint_returns_probabilities(root: Path) -> None:
    with chat_server(lambda asked: says("Dark.\nScore: 4", probabilities={"4": 0.5, "2": 0.25, "x": 0.25})) as server:
        [verdict] = judged(root, settings(server), ITEMS[:1])
    assert verdict.outcome == "weighted"
    assert verdict.score == pytest.approx((10 / 3 - 1) / 4)  # (.5 * 4 + .25 * 2) / .75 = 10 / 3


@pytest.mark.parametrize(
    "changes",
    [{"model": "other"}, {"criteria": "xfiles"}, {"temperature": 0.5}, {"top_logprobs": 5}, {"max_reply_tokens": 99}],
)
def test_what_changes_the_answer_is_asked_anew(root: Path, changes: dict[str, Any]) -> None:
    with chat_server(well) as server:
        judged(root, settings(server), ITEMS[:1])
        judged(root, settings(server, **changes), ITEMS[:1])
        assert len(server.asked) == 2
        assert settings(server).identity() != settings(server, **changes).identity()


@pytest.mark.parametrize("changes", [{"requests_in_flight": 1}, {"timeout_seconds": 9}, {"retries": 1}])
def test_patience_changes_nothing(root: Path, changes: dict[str, Any]) -> None:
    with chat_server(well) as server:
        judged(root, settings(server), ITEMS[:1])
        judged(root, settings(server, **changes), ITEMS[:1])
        assert len(server.asked) == 1
        assert settings(server).identity() == settings(server, **changes).identity()


def test_another_endpoint_may_hold_another_model_of_that_name(root: Path) -> None:
    with chat_server(well) as one, chat_server(lambda asked: says("Score: 5")) as two:
        assert judged(root, settings(one), ITEMS[:1])[0].score == 0.0
        assert judged(root, settings(two), ITEMS[:1])[0].score == 1.0


def test_as_many_requests_at_once_as_set_and_no_more(root: Path) -> None:
    lock, three, now, most = threading.Lock(), threading.Barrier(3), 0, 0

    def slow(asked: Asked) -> Answer:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        three.wait(60)  # 12 items are four times three: with fewer at once this would break
        time.sleep(0.05)  # for one too many to come in
        with lock:
            now -= 1
        return well(asked)

    with chat_server(slow) as server:
        judged(root, settings(server, requests_in_flight=3, timeout_seconds=120), ITEMS)
    assert most == 3


# answers without a score


def test_refusals_and_nonsense_are_kept_as_such_and_not_asked_again(root: Path) -> None:
    answers = [
        says("", message={"role": "assistant", "content": None, "refusal": "I won't rate violence."}),
        says("I'm sorry, but I can't help with that."),
        says("Score: 4", finish_reason="content_filter"),
        fails(400, "The prompt was filtered", code="content_filter"),
        says("lorem ipsum"),
        says("Score: 99"),
        says("Because", finish_reason="length"),
        says("half an emoji: \ud83d\nScore: 3"),
    ]
    with chat_server(lambda asked: answers[int(asked.text.split("wolves, ")[1].split(",")[0])]) as server:
        verdicts = judged(root, settings(server), ITEMS[:8])
        outcomes = [(verdict.outcome, verdict.score) for verdict in verdicts]
        assert outcomes == [("refused", None)] * 4 + [("unparsed", None)] * 3 + [("written", 0.5)]
        assert verdicts[7].text.encode() == b"half an emoji: ?\nScore: 3"
        assert judged(root, settings(server), ITEMS[:8]) == verdicts
        assert len(server.asked) == 8


# faults that pass


@pytest.mark.parametrize(
    ("fault", "least"),
    [
        (lambda: fails(429, retry_after="0.3"), 0.3),
        (lambda: fails(429, retry_after_ms="200"), 0.2),
        (lambda: fails(503, Retry_After=formatdate(time.time() + 2, usegmt=True)), 0.9),  # dates are whole seconds
        (lambda: fails(429, retry_after="soon"), 0.0),
        (lambda: fails(500), 0.0),
        (lambda: Answer(b"<html>bad gateway</html>", 502, {"Content-Type": "text/html"}), 0.0),
        (lambda: Answer(b"no json", 200), 0.0),
        (lambda: Answer(b"\xff\xfe", 200), 0.0),
        (lambda: Answer({"choices": []}), 0.0),
        (lambda: Answer(b"not gzip", 200, {"Content-Encoding": "gzip"}), 0.0),
        (lambda: Answer({"choices": []}, hang_up=True), 0.0),
    ],
)
def test_a_fault_that_passes_is_tried_again(root: Path, fault: Any, least: float) -> None:
    with chat_server(lambda asked: fault() if asked.number == 0 else well(asked)) as server:
        begun = time.monotonic()
        assert judged(root, settings(server), ITEMS[:1])[0].score == 0.0
        assert time.monotonic() - begun >= least
        assert len(server.asked) == 2


def test_a_retry_after_holds_back_all_threads(root: Path) -> None:
    times: list[float] = []

    def limited(asked: Asked) -> Answer:
        times.append(time.monotonic())
        time.sleep(0.0 if asked.number == 0 else 0.1)  # so that the other thread has not sent all before it hears of it
        return fails(429, retry_after="0.5") if asked.number == 0 else well(asked)

    with chat_server(limited) as server:
        judged(root, settings(server, requests_in_flight=2), ITEMS)
    pauses = [after - before for before, after in pairwise(times)]
    longest = max(pauses)
    assert longest >= 0.4  # 0.5 less what a request may take to come in
    assert len(pauses) - pauses.index(longest) >= 6  # left alone, the other thread would have sent all before


def test_pauses_grow_and_vary(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(judge_endpoint, "LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(judge_endpoint.Endpoint, "wait", lambda self, seconds: pauses.append(seconds))
    monkeypatch.setattr(judge_endpoint.random, "uniform", random.Random(0).uniform)
    with chat_server(lambda asked: fails(500)) as server, pytest.raises(EndpointError):
        judged(root, settings(server, retries=5), ITEMS[:1])
    slept = [seconds for seconds in pauses if seconds > 0]
    for seconds, longest in zip(slept, [0.01, 0.02, 0.04, 0.05, 0.05], strict=True):
        assert longest / 2 <= seconds <= longest
    assert len(set(slept)) == 5


# faults that do not pass


def failing(root: Path, judge: Judge, **changes: Any) -> tuple[str, str, ChatServer]:
    """The two lines of the error, and the server."""
    with chat_server(judge) as server, pytest.raises(EndpointError) as caught:
        judged(root, settings(server, requests_in_flight=1, **changes), ITEMS)
    problem, advice = str(caught.value).split("\n")
    return problem.replace(server.base_url, "URL"), advice, server


def test_a_server_that_hangs_is_given_up_after_its_time(root: Path) -> None:
    release = threading.Event()

    def hang(asked: Asked) -> Answer:
        release.wait(60)
        return well(asked)

    begun = time.monotonic()
    with chat_server(hang) as server:
        with pytest.raises(EndpointError, match=r"did not answer within 0\.2 s \(asked 2 times\); 0 of 12"):
            judged(root, settings(server, timeout_seconds=0.2, retries=1), ITEMS)
        release.set()
    assert time.monotonic() - begun < 60


def test_nothing_listens(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(EndpointError) as caught:
        judged(root, settings(url), ITEMS)
    problem, advice = str(caught.value).split("\n")
    assert problem.startswith(f"the judge at {url} cannot be reached: ")
    assert "refused" in problem
    assert problem.endswith("(asked 3 times); 0 of 12 answers are kept")
    assert advice == "see that it runs and that judge.base_url or OPENAI_BASE_URL is right, then run again"


@pytest.mark.parametrize(
    ("fault", "problem", "advice"),
    [
        (fails(401, f"Incorrect API key: {KEY}"), "URL does not accept the key (401)", "check OPENAI_API_KEY"),
        (fails(403, "no"), "URL does not accept the key (403)", "check OPENAI_API_KEY"),
        (fails(404, "no model x"), "URL refuses the request (404): no model x", "check judge.model, and"),
        (
            fails(400, f"top_logprobs\nnot {KEY}"),
            "(400): top_logprobs not [key];",
            "leave it out: judge.top_logprobs=0",
        ),
        (fails(429, "pay", code="insufficient_quota"), "URL: the quota is used up (429)", "top it up, then run again"),
        (fails(429, "slow", retry_after="86400"), "URL asks to wait 86,400 s (429): slow", "run again after that"),
    ],
)
def test_what_cannot_pass_is_said_at_once(root: Path, fault: Answer, problem: str, advice: str) -> None:
    said, todo, server = failing(root, lambda asked: fault)
    assert problem in said
    assert advice in todo
    assert KEY[:9] not in said + todo
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (fails(503, "model is loading"), "URL answers 503: model is loading (asked 3 times); 0 of 12"),
        (Answer(b"", 500), "URL answers 500: no reason given (asked 3 times)"),
        (Answer(b"<html>hello</html>"), "URL does not answer with chat completions, but with '<html>hello</html>'"),
        (Answer(b"[" * 200_000), "URL does not answer with chat completions, but with '[[[["),
        (Answer(b" " * 190 + KEY.encode()), "URL does not answer with chat completions, but with '[key]' (asked 3"),
        (Answer({"echo": KEY}), 'URL does not answer with chat completions, but with \'{"echo": "[key]"}\''),
        (Answer({"choices": [1] * 9}, hang_up=True), "URL cannot be reached: "),
    ],
)
def test_what_does_not_pass_is_said_in_the_end(root: Path, fault: Answer, problem: str) -> None:
    said, _, server = failing(root, lambda asked: fault)
    assert problem in said
    assert KEY[:9] not in said
    assert len(server.asked) == 3


def test_a_key_that_is_sent_back_is_not_kept(root: Path) -> None:
    with chat_server(lambda asked: says(f"{asked.headers['authorization']}\nScore: 2")) as server:
        [verdict] = judged(root, settings(server), ITEMS[:1])
    assert verdict.text == "Bearer [key]\nScore: 2"


def test_a_short_key_is_no_secret_and_spoils_no_text(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "4")
    with chat_server(lambda asked: says("Score: 4")) as server:
        assert judged(root, settings(server), ITEMS[:1])[0].score == 0.75


def test_the_key_is_in_no_log(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with chat_server(lambda asked: fails(500) if asked.number == 0 else well(asked)) as server:
        judged(root, settings(server), ITEMS)
    assert caplog.records
    assert KEY not in caplog.text


# ends in the middle


def test_a_server_that_dies_half_way_loses_nothing(root: Path) -> None:
    said, _, first = failing(root, lambda asked: well(asked) if asked.number < 7 else fails(500), retries=0)
    assert "URL answers 500: overloaded (asked once); 7 of 12 answers are kept" in said
    with pytest.raises(EndpointError, match=r"cannot be reached: .*; 7 of 12 answers are kept"):
        judged(root, settings(first, retries=0), ITEMS)
    assert len(judged(root, settings(first), ITEMS[:7])) == 7


def test_after_a_fault_only_what_is_missing_is_asked(root: Path) -> None:
    broken = threading.Event()

    def judge(asked: Asked) -> Answer:
        if asked.number == 7:
            broken.set()
        return fails(500) if broken.is_set() else well(asked)

    with chat_server(judge) as server:
        with pytest.raises(EndpointError, match="of 12 answers are kept"):
            judged(root, settings(server, requests_in_flight=3, retries=0), ITEMS)
        answered = server.texts[:7]
        before = len(server.asked)
        broken.clear()
        assert [verdict.score for verdict in judged(root, settings(server), ITEMS)] == EXPECTED
        assert len(server.asked) - before == 5
        assert set(server.texts[before:]).isdisjoint(answered)


SCRIPT = """
import sys
from pathlib import Path
from tests.tasks.judge.test_judge import ITEMS, settings
from tasks.judge.judge import judge_texts
from tasks.engine.local import finished
print("started", flush=True)
found = finished(judge_texts(Path(sys.argv[1]), settings(sys.argv[2], timeout_seconds=60), ITEMS))
print([verdict.score for verdict in found])
"""


def in_another_process(root: Path, server: ChatServer) -> subprocess.Popen[str]:
    here = Path(__file__).parents[3]
    command = [sys.executable, "-c", SCRIPT, str(root), server.base_url]
    return subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True)


def kept(root: Path) -> list[Path]:
    """The files of answers that are there."""
    return [path for path in (root / "judgements").rglob("*.json") if path.stat().st_size]


def test_two_processes_at_once_ask_for_each_answer_once(root: Path) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(asked: Asked) -> Answer:
        begun.set()
        release.wait(60)
        return well(asked)

    with chat_server(slow) as server:
        first = in_another_process(root, server)
        assert begun.wait(60)
        second = in_another_process(root, server)
        assert second.stdout is not None
        assert second.stdout.readline() == "started\n"
        time.sleep(0.5)  # it has found the answers missing, and the first process asking for them
        release.set()
        outputs = [process.communicate(timeout=60)[0].splitlines()[-1] for process in (first, second)]
        assert [json.loads(output) for output in outputs] == [EXPECTED, EXPECTED]
        assert len(server.asked) == len(set(server.texts)) == 12


def test_a_killed_process_leaves_what_it_had_and_what_it_had_not_is_asked_again(root: Path) -> None:
    hang = threading.Event()
    full = threading.Event()

    def judge(asked: Asked) -> Answer:
        if asked.number >= 8 and not hang.is_set():
            full.set()
            hang.wait(60)
        return well(asked)

    with chat_server(judge) as server:
        process = in_another_process(root, server)
        assert full.wait(60)
        deadline = time.monotonic() + 60
        while len(kept(root)) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        hang.set()
        assert len(kept(root)) == 8
        asked_before = len(server.asked)
        assert [verdict.score for verdict in judged(root, settings(server), ITEMS)] == EXPECTED
        assert len(server.asked) - asked_before == 4


@pytest.mark.parametrize("left", ["", "{", '{"asked": {}, "reply": {"text": "Sco', "\0\0\0\0", "[]", "{" * 9999])
def test_a_torn_file_is_no_answer(root: Path, left: str) -> None:
    with chat_server(well) as server:
        judged(root, settings(server), ITEMS[:1])
        [path] = (root / "judgements").rglob("*.json")
        whole = path.read_bytes()
        path.write_text(left)
        assert Answers(root / "judgements").read(path.stem) is None
        judged(root, settings(server), ITEMS[:1])
        assert path.read_bytes() == whole


def test_a_flipped_bit_is_no_answer(root: Path) -> None:
    with chat_server(well) as server:
        judged(root, settings(server), ITEMS[:1])
        [path] = (root / "judgements").rglob("*.json")
        whole = path.read_text()
        path.write_text(whole.replace("3", "4", 1) if "3" in whole else whole.replace("0", "1", 1))
        assert Answers(root / "judgements").read(path.stem) is None


def test_an_interrupt_ends_all_waiting(root: Path) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with chat_server(lambda asked: well(asked) if asked.number == 0 else fails(429, retry_after="200")) as server:
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            judged(root, settings(server), ITEMS, interrupt)
        assert time.monotonic() - begun < 100


# before anything starts


def test_the_check_asks_one_short_question_with_the_real_parameters() -> None:
    with chat_server(lambda asked: says("Score: 3", probabilities={"3": 1.0})) as server:
        assert check_judge(settings(server)) is None
    [asked] = server.asked
    assert asked.body["top_logprobs"] == 20
    assert len(asked.text) < 100


def test_the_check_remarks_that_there_are_no_probabilities() -> None:
    with chat_server(lambda asked: says("Score: 3")) as server:
        remark = check_judge(settings(server))
        assert remark is not None
        assert "returns no token probabilities" in remark
        assert check_judge(settings(server, top_logprobs=0)) is None


def test_the_check_tries_twice_at_most() -> None:
    with chat_server(lambda asked: fails(500)) as server, pytest.raises(EndpointError, match=r"500.*asked 2 times"):
        check_judge(settings(server, retries=6))


def test_no_endpoint(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    nowhere = JudgeSettings(criteria="papers")
    assert why_no_judge(None) == "no judge is configured (evaluation.judge)"
    assert why_no_judge(nowhere) == "no endpoint is configured (judge.base_url or OPENAI_BASE_URL)"
    assert nowhere.identity()["endpoint"] is None
    for call in (lambda: check_judge(nowhere), lambda: judged(root, nowhere, ITEMS)):
        with pytest.raises(EndpointError, match=r"the judge has no endpoint\nset judge.base_url or OPENAI_BASE_URL"):
            call()
    monkeypatch.setenv("OPENAI_BASE_URL", "https://judge.example/v1/")
    assert why_no_judge(nowhere) is None
    assert nowhere.identity()["endpoint"] == "https://judge.example/v1"


@pytest.mark.parametrize(
    ("url", "needed"),
    [
        ("http://localhost:8000/v1", False),
        ("http://127.0.0.1/v1", False),
        ("http://[::1]:8000/v1", False),
        ("http://192.168.1.7:8000/v1", False),
        ("https://api.openai.com/v1", True),
        ("http://8.8.8.8/v1", True),
    ],
)
def test_a_key_is_needed_beyond_the_private_network(monkeypatch: pytest.MonkeyPatch, url: str, needed: bool) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if not needed:
        assert api_key(url) is None
        return
    with pytest.raises(ValueError, match=r"needs a key\nset OPENAI_API_KEY"):
        check_judge(settings(url))


@pytest.mark.parametrize("key", ["sk-with space", "sk-line\n", "sk-ключ"])
def test_a_key_that_cannot_be_one_is_not_repeated(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="OPENAI_API_KEY holds a space") as caught:
        check_judge(settings("http://127.0.0.1:9/v1"))
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("sk-secret", "must be a URL"),
        ("localhost:8000/v1", "must be a URL"),
        ("ftp://host/v1", "must be a URL"),
        ("http://host:port/v1", "must be a URL"),
        ("http:///v1", "must be a URL"),
        ("", "must be a URL"),
        ("https://me:secret@host/v1", "must hold no user, password"),
        ("https://host/v1?api-key=secret", "must hold no user, password"),
        ("https://host/v1/chat/completions", "must end before"),
    ],
)
def test_what_is_no_address_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, url: str, rule: str) -> None:
    with pytest.raises(ValueError, match=f"base_url {rule}") as caught:
        JudgeSettings(criteria="asoif", base_url=url)
    assert "secret" not in str(caught.value)
    if url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(ValueError, match=f"OPENAI_BASE_URL {rule}") as caught:
            check_judge(JudgeSettings(criteria="asoif"))
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"criteria": "asiof"}, "criteria must be one of .*did you mean asoif"),
        ({"model": " "}, "model must be the name"),
        ({"max_windows": 0}, "max_windows must be at least 1, got 0"),
        ({"requests_in_flight": 0}, "requests_in_flight must be at least 1, got 0"),
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"max_reply_tokens": 0}, "max_reply_tokens must be at least 1, got 0"),
        ({"top_logprobs": 21}, r"top_logprobs must be in \[0, 20\], got 21"),
        ({"temperature": 2.5}, r"temperature must be in \[0, 2\], got 2.5"),
        ({"timeout_seconds": 0}, r"timeout_seconds must be in \(0, 3600\], got 0"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        JudgeSettings(**({"criteria": "asoif"} | changes))


def test_nothing_heavy_is_imported_before_something_is_asked() -> None:
    code = (
        "import sys, tasks.judge.judge; print([m for m in ('openai', 'httpx2', 'numpy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_key_of_a_stage_holds_the_endpoint_and_not_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://judge.example/v1")
    record = key_record("evaluate", judge_texts, {"judge": JudgeSettings(criteria="papers")})
    assert record["settings"]["judge"]["endpoint"] == "https://judge.example/v1"
    assert KEY not in json.dumps(record)


def test_the_settings_pass_through_a_runs_form() -> None:
    def flow(judge: JudgeSettings | None = None) -> None: ...

    given = {"judge": {"criteria": "papers", "temperature": None, "retries": 1}}
    assert validate(signature(flow), given) == {"judge": JudgeSettings(criteria="papers", temperature=None, retries=1)}
    with pytest.raises(ValueError, match=r"there is no setting judge\.retry; did you mean judge\.retries\?"):
        validate(signature(flow), {"judge": {"criteria": "papers", "retry": 1}})
    with pytest.raises(ValueError, match=r"base_url must hold no user") as caught:
        validate(signature(flow), {"judge": {"criteria": "papers", "base_url": "http://me:secret@host/v1"}})
    assert "secret" not in str(caught.value)
