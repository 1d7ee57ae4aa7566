"""An OpenAI-compatible endpoint: one question, one answer, and what to do when it does not come.

Rate limits (429), faults (5xx, 408, 409), time-outs, broken connections and answers that are not what was asked for are
tried again, with exponential back-off and jitter, and not before a `Retry-After` has passed, which holds back all
threads. Whatever else it says is final, and ends in an `EndpointError`. The key is in no message: see `_said`.
"""

from __future__ import annotations

import email.utils
import json
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import openai

FIRST_PAUSE_SECONDS = 0.5  # doubled at each further try
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 300.0  # beyond that it is no pause but an end: a quota for the day
SHORTEST_SECRET = 8  # "none" is no secret, and hiding it would spoil texts that hold the word
PASSING_STATUSES = (408, 409, 429)


T = TypeVar("T")


class EndpointError(ValueError):
    """An endpoint cannot be asked, in one line, with a second that says what to do."""


class ContentFilterError(Exception):
    """The endpoint would not read the question, or not answer it: its content filter."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What an endpoint and its settings are called in messages."""

    who: str  # the judge
    url: str  # what says where it is: judge.base_url or OPENAI_BASE_URL
    model: str
    key: str  # the variable that holds it
    parameters: str  # what to do where it refuses a parameter
    other: str  # and where it answers something else than it was asked for


class Stopped(Exception):
    """Another thread has failed, or the user has stopped the run: ask nothing more."""


class Endpoint:
    """A client for many threads. `stop` ends all waiting."""

    def __init__(self, names: Names, *, base_url: str, key: str | None, timeout_seconds: float, retries: int) -> None:
        import httpx
        import openai

        self._response = httpx.Response
        self._openai, self._retries, self._names = openai, retries, names
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

    def ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T], what: str) -> T:
        """What `read` makes of the JSON that comes back for `body`; it raises ValueError for what is not `what`.

        path: under the base URL, or a whole URL. The key is hidden in what comes back. Raises EndpointError,
        ContentFilterError; Stopped when `stop` is set.
        """
        advice = ""
        for attempt in range(self._retries + 1):
            self.wait(self._not_before - time.monotonic())
            try:
                content = self._client.post(path, body=dict(body), cast_to=self._response).content
                return self._read(content, read, what)
            except self._openai.APIStatusError as error:
                if error.code == "content_filter":
                    raise ContentFilterError from None
                problem, pause = self._status(error), _retry_after(error.response.headers)
            except self._openai.APITimeoutError:
                problem, pause = f"did not answer within {self._timeout:g} s", None
            except self._openai.APIConnectionError as error:
                problem, pause = f"cannot be reached: {self._said(_cause(error))}", None
            except _OtherAnswer as error:
                problem, pause, advice = str(error), None, self._names.other
            if attempt < self._retries:
                self._pause(attempt, pause)
        raise EndpointError(
            f"{self._where} {problem} ({_times(self._retries + 1)})\n"
            f"{advice or f'see that it runs and that {self._names.url} is right, then run again'}"
        )

    @property
    def _where(self) -> str:
        return f"{self._names.who} at {self.base_url}"

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

    def _read(self, content: bytes, read: Callable[[Any], T], what: str) -> T:
        try:
            return read(self._without_key(json.loads(content)))
        except (ValueError, RecursionError):  # also of text that is no JSON, no UTF-8, or nested without end
            shown = self._said(content.decode("utf-8", "replace"))  # the whole: half a key would not be found
            raise _OtherAnswer(f"does not answer with {what}, but with {shown[:80]!r}") from None

    def _without_key(self, found: Any) -> Any:
        """The same JSON with the key hidden in its texts."""
        if isinstance(found, str):
            return self._hidden(found)
        if isinstance(found, dict):
            return {name: self._without_key(each) for name, each in found.items()}
        return [self._without_key(each) for each in found] if isinstance(found, list) else found

    def _status(self, error: openai.APIStatusError) -> str:
        """What is wrong, if trying again may help. Raises EndpointError if not."""
        status = error.status_code
        said = self._said(error.message.removeprefix(f"Error code: {status}").removeprefix(" - "))
        where, names = self._where, self._names
        if status in (401, 403):  # what it says may hold a part of the key
            raise EndpointError(f"{where} does not accept the key ({status})\ncheck {names.key}") from None
        if error.code == "insufficient_quota":
            raise EndpointError(f"{where}: the quota is used up ({status})\ntop it up, then run again") from None
        after = _retry_after(error.response.headers)
        if after is not None and after > LONGEST_RETRY_AFTER_SECONDS:
            raise EndpointError(
                f"{where} asks to wait {after:,.0f} s ({status}): {said}\nrun again after that"
            ) from None
        if status in PASSING_STATUSES or status >= 500:
            return f"answers {status}: {said}"
        if status in (404, 405):
            advice = f"check {names.model}, and {names.url}, which usually ends in /v1"
        else:
            advice = names.parameters
        raise EndpointError(f"{where} refuses the request ({status}): {said}\n{advice}") from None

    def _said(self, text: str) -> str:
        """What somebody else has said, in one short line without the key."""
        return " ".join(self._hidden(text).split())[:200] or "no reason given"

    def _hidden(self, text: str) -> str:
        return text.replace(self._secret, "[key]") if self._secret else text


class _OtherAnswer(Exception):
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
