"""Whom G-Eval asks and what: the settings, the endpoint's address and its key.

The endpoint is `judge.base_url` or OPENAI_BASE_URL; the key is OPENAI_API_KEY, and is part of no setting.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from kd_core.metrics.g_eval.prompt import criteria_of, judge_messages
from tasks.endpoints import address

URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"
MOST_ALTERNATIVES = 20  # the protocol's limit


@dataclass(frozen=True, kw_only=True)
class Item:
    """A continuation and what it continues, as texts."""

    context: str
    continuation: str


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Who judges, by which criteria, how many windows. The paper's judge is GPT-4o."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    criteria: str  # asoif, xfiles, stargate, fringe, doctor-who, papers; or a text, one criterion a line
    model: str = "gpt-4o"  # as the endpoint calls it
    base_url: str | None = None  # such as http://localhost:8000/v1; None = OPENAI_BASE_URL
    max_windows: int = 200  # spread evenly over the split; each costs a request per system, and one for the true text
    temperature: float | None = 0.0  # None = do not send it (reasoning models refuse it)
    top_logprobs: int = 20  # alternatives to ask for; 0 = none, the score then stands as written
    max_reply_tokens: int | None = 512  # None = no limit is sent
    requests_in_flight: int = 8
    timeout_seconds: float = 60.0  # without a byte from the endpoint
    retries: int = 6  # after the first try, of one request

    def __post_init__(self) -> None:
        criteria_of(self.criteria)
        if not self.model.strip():
            raise ValueError("model must be the name of a model, got none")
        if self.base_url is not None:
            _checked_url(self.base_url, "base_url")
        for name, least in (("max_windows", 1), ("requests_in_flight", 1), ("retries", 0), ("max_reply_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= self.top_logprobs <= MOST_ALTERNATIVES:
            raise ValueError(f"top_logprobs must be in [0, {MOST_ALTERNATIVES}], got {self.top_logprobs}")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}")
        if not 0 < self.timeout_seconds <= 3600:
            raise ValueError(f"timeout_seconds must be in (0, 3600], got {self.timeout_seconds}")

    def identity(self) -> dict[str, Any]:
        """What a score depends on, for the key of a stage: whom and what is asked, not how patiently.

        The endpoint is part of it, also where it comes from the environment: the same name may be another model there.
        """
        return {
            "endpoint": endpoint_url(self),
            "criteria": list(criteria_of(self.criteria)),
            "max_windows": self.max_windows,
            **self.parameters(),
        }

    def body(self, item: Item) -> dict[str, Any]:
        """The request, as it is sent."""
        messages = judge_messages(item.context, item.continuation, criteria_of(self.criteria))
        return self.parameters() | {"messages": messages}

    def parameters(self) -> dict[str, Any]:
        """The request without its messages."""
        body: dict[str, Any] = {"model": self.model}
        if self.temperature is not None:
            body["temperature"] = float(self.temperature)
        if self.max_reply_tokens is not None:
            body["max_completion_tokens"] = self.max_reply_tokens
        if self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return body


def endpoint_url(settings: JudgeSettings) -> str | None:
    """Where the judge is asked, or None if no endpoint is configured. Raises ValueError if it is no URL."""
    if settings.base_url is not None:
        return _checked_url(settings.base_url, "base_url")
    named = os.environ.get(URL_VARIABLE, "").strip()
    return _checked_url(named, URL_VARIABLE) if named else None


def api_key(url: str) -> str | None:
    """The key for the endpoint, as `address.api_key` has it."""
    return address.api_key("the judge", url, KEY_VARIABLE)


def _checked_url(url: str, name: str) -> str:
    return address.checked_url(url, name, KEY_VARIABLE)
