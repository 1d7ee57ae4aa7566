"""An OpenAI-compatible endpoint: one question, one answer, and what to do when it does not come.

Rate limits (429), faults (5xx, 408, 409), time-outs, broken connections and answers that are no chat completion are
tried again, with exponential back-off and jitter, and not before a `Retry-After` has passed, which holds back all
threads. Whatever else it says is final, and ends in a `JudgeError`. The key is in no message: see `_said`.
"""

from __future__ import annotations

import email.utils
import json
import math
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kd_core.metrics.g_eval.reply import Reply, read_reply

if TYPE_CHECKING:
    import openai

FIRST_PAUSE_SECONDS = 0.5  # doubled at each further try
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 300.0  # beyond that it is no pause but an end: a quota for the day
SHORTEST_SECRET = 8  # "none" is no secret, and hiding it would spoil texts that hold the word
PASSING_STATUSES = (408, 409, 429)


class JudgeError(ValueError):
    """The judge cannot be asked, in one line, with a second that says what to do."""


class Stopped(Exception):
    """Another thread has failed, or the user has stopped the run: ask nothing more."""


class Endpoint:
    """A client for many threads. `stop` ends all waiting."""

    def __init__(self, *, base_url: str, key: str | None, timeout_seconds: float, retries: int) -> None:
        import openai

        self._openai, self._retries = openai, retries
        self._secret = key if key and len(key) >= SHORTEST_SECRET else None
        self.base_url, self._timeout = base_url, timeout_seconds
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=key or "none",  # the client wants one; an endpoint on this machine reads none
            timeout=timeout_seconds,
            max_retries=0,  # tried again below, where waiting can be stopped and is shared between threads
        )
        self.stop = threading.Event()
        self._lock, self._not_before = threading.Lock(), 0.0

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def ask(self, body: dict[str, Any]) -> Reply:
        """The reply to one chat-completions request. Raises JudgeError; Stopped when `stop` is set."""
        for attempt in range(self._retries + 1):
            self.wait(self._not_before - time.monotonic())
            try:
                answer = self._client.chat.completions.with_raw_response.create(**body)
                return self._read(answer.http_response.content)
            except self._openai.APIStatusError as error:
                if error.code == "content_filter":
                    return Reply(text="", refusal="stopped by the endpoint's content filter")
                problem, pause = self._status(error), _retry_after(error.response.headers)
            except self._openai.APITimeoutError:
                problem, pause = f"did not answer within {self._timeout:g} s", None
            except self._openai.APIConnectionError as error:
                problem, pause = f"cannot be reached: {self._said(_cause(error))}", None
            except _NoCompletion as error:
                problem, pause = str(error), None
            if attempt < self._retries:
                self._pause(attempt, pause)
        raise JudgeError(
            f"the judge at {self.base_url} {problem} ({_times(self._retries + 1)})\n"
            "see that it runs and that judge.base_url or OPENAI_BASE_URL is right, then run again"
        )

    def wait(self, seconds: float) -> None:
        """Sleep, or raise Stopped as soon as `stop` is set."""
        if self.stop.wait(max(seconds, 0.0)):
            raise Stopped

    def _pause(self, attempt: int, retry_after: float | None) -> None:
        """Wait before the next try. What the endpoint asks for holds for all threads; jitter only adds to it."""
        if retry_after is not None:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + retry_after)
        longest = min(FIRST_PAUSE_SECONDS * 2.0**attempt, LONGEST_PAUSE_SECONDS)
        jittered = longest * random.uniform(0.5, 1.0)
        self.wait(jittered if retry_after is None else retry_after + random.uniform(0.0, FIRST_PAUSE_SECONDS))

    def _read(self, content: bytes) -> Reply:
        try:
            reply = read_reply(json.loads(content))
        except (ValueError, RecursionError):  # also of text that is no JSON, no UTF-8, or nested without end
            shown = self._said(content.decode("utf-8", "replace"))  # the whole: half a key would not be found
            raise _NoCompletion(f"does not answer with chat completions, but with {shown[:80]!r}") from None
        return replace(reply, text=self._hidden(reply.text), refusal=self._hidden(reply.refusal))

    def _status(self, error: openai.APIStatusError) -> str:
        """What is wrong, if trying again may help. Raises JudgeError if not."""
        status = error.status_code
        said = self._said(error.message.removeprefix(f"Error code: {status}").removeprefix(" - "))
        where = f"the judge at {self.base_url}"
        if status in (401, 403):  # what it says may hold a part of the key
            raise JudgeError(f"{where} does not accept the key ({status})\ncheck OPENAI_API_KEY") from None
        if error.code == "insufficient_quota":
            raise JudgeError(f"{where}: the quota is used up ({status})\ntop it up, then run again") from None
        after = _retry_after(error.response.headers)
        if after is not None and after > LONGEST_RETRY_AFTER_SECONDS:
            raise JudgeError(f"{where} asks to wait {after:,.0f} s ({status}): {said}\nrun again after that") from None
        if status in PASSING_STATUSES or status >= 500:
            return f"answers {status}: {said}"
        if status in (404, 405):
            advice = "check judge.model, and judge.base_url or OPENAI_BASE_URL, which usually ends in /v1"
        else:
            advice = (
                "where it refuses a parameter, leave it out: judge.top_logprobs=0, judge.temperature=null or "
                "judge.max_reply_tokens=null"
            )
        raise JudgeError(f"{where} refuses the request ({status}): {said}\n{advice}") from None

    def _said(self, text: str) -> str:
        """What somebody else has said, in one short line without the key."""
        return " ".join(self._hidden(text).split())[:200] or "no reason given"

    def _hidden(self, text: str) -> str:
        return text.replace(self._secret, "[key]") if self._secret else text


class _NoCompletion(Exception):
    pass


def _cause(error: Exception) -> str:
    return str(error.__cause__ or error) or type(error.__cause__ or error).__name__


def _times(number: int) -> str:
    return "asked once" if number == 1 else f"asked {number} times"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from now, given as `retry-after-ms`, or as `Retry-After` in seconds or as a date. None if neither is."""
    found = math.nan
    with suppress(ValueError, TypeError):  # tried in turn: the last that can be read is the one that counts
        found = email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
    with suppress(ValueError):
        found = float(headers.get("retry-after", ""))
    with suppress(ValueError):
        found = float(headers.get("retry-after-ms", "")) / 1000
    return None if math.isnan(found) else max(found, 0.0)
