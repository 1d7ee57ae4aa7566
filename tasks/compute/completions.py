"""The completions protocol as a teacher is asked by it: settings, requests in token ids, and what is read of answers.

Two ways of asking for the log-probabilities of given tokens, both with the largest one at each position:

    prompt_logprobs   vLLM: choices[0].prompt_logprobs, for each token of the prompt {id: {logprob, rank, …}} of itself
                      and of the likeliest
    echo              SGLang, and OpenAI's own older models: choices[0].logprobs of prompt and answer, token_logprobs
                      and top_logprobs

llama.cpp's server has neither (its log-probabilities are of what it writes). One token is always written, so that the
state after the last given token has its largest log-probability too.

The likeliest tokens of each position are told by prompt_logprobs alone: echo names tokens by their text, which some
share. vLLM tells as many as `--max-logprobs` allows, 20 where nothing is said.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kd_core.models.backends.remote import Scored, Writing, Written
from tasks.endpoints.address import checked_url
from tasks.endpoints.endpoint import Names

KEY_VARIABLE = "TEACHER_API_KEY"  # not the judge's: one server's key is not for another to see
# what servers would otherwise take from the model's own generation config
PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Where a teacher is, what it is called there, and how patiently it is asked."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    url: str  # such as http://localhost:8000/v1; in no key: where, not what
    model: str  # as the server calls it
    key_env: str = KEY_VARIABLE  # the variable that holds the key; needed beyond this machine and private networks
    log_probs: Literal["prompt_logprobs", "echo"] = "prompt_logprobs"  # vLLM's; SGLang's
    requests_in_flight: int = 16
    timeout_seconds: float = 120.0  # without a byte from the server
    retries: int = 6  # after the first try, of one request

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", self.key_env):  # it may be the key itself: it is not repeated
            raise ValueError(
                "key_env must be the name of a variable in capitals, such as TEACHER_API_KEY: the key goes into that"
            )
        checked_url(self.url, "url", self.key_env)
        if not self.model.strip():
            raise ValueError("model must be the name that the server has for it, got none")
        if self.log_probs not in ("prompt_logprobs", "echo"):
            raise ValueError(f"log_probs must be prompt_logprobs or echo, got {self.log_probs!r}")
        for name, least in (("requests_in_flight", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.timeout_seconds <= 3600:
            raise ValueError(f"timeout_seconds must be in (0, 3600], got {self.timeout_seconds}")

    @property
    def base_url(self) -> str:
        """The URL without a slash at its end."""
        return checked_url(self.url, "url", self.key_env)

    @property
    def names(self) -> Names:
        """What it is called in messages."""
        return Names(
            who="the teacher",
            url="teacher.endpoint.url",
            model="teacher.endpoint.model",
            key=self.key_env,
            parameters="it must take token ids as prompt, and tell their log-probabilities: vLLM and SGLang do; where "
            "it says that a context is too long, lower lengths.source or lengths.target; where it allows fewer "
            "log-probabilities than are asked for, start it with more (vLLM: --max-logprobs), or lower labels.top_k",
            other="vLLM answers so, and SGLang under teacher.endpoint.log_probs=echo; llama.cpp's server does not",
        )


def score_body(settings: EndpointSettings, prompt: Sequence[int], target: Sequence[int]) -> dict[str, Any]:
    """The request for the log-probabilities of a target after its prompt."""
    body = {"model": settings.model, "prompt": [*prompt, *target], "max_tokens": 1, "temperature": 0.0}
    body |= {"logprobs": 1, **PLAIN}
    if settings.log_probs == "echo":
        return body | {"echo": True}
    return body | {"prompt_logprobs": 1}


def read_scored(payload: Any, prompt: Sequence[int], target: Sequence[int]) -> Scored:
    """What a completion says of the target's tokens. Raises ValueError if that is not all that was asked for."""
    try:
        choice, ids, start = payload["choices"][0], [*prompt, *target], len(prompt)
        if choice.get("prompt_logprobs") is not None:
            entries = choice["prompt_logprobs"]
            if len(entries) != len(ids):
                raise ValueError("not as many as tokens")
            rows = [{int(number): each["logprob"] for number, each in entry.items()} for entry in entries[start:]]
            own = [row[number] for row, number in zip(rows, ids[start:], strict=True)]
            largest = [max(row.values()) for row in rows]
            largest.append(max(choice["logprobs"]["top_logprobs"][0].values()))
        else:
            told = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
            if {len(each) for each in told} != {len(ids) + 1}:
                raise ValueError("not as many as tokens")
            own, top = (each[start:] for each in told)
            largest = [max(mine, *row.values()) for mine, row in zip(own, top, strict=True)]
            own = own[:-1]
    except (LookupError, TypeError, AttributeError):
        raise ValueError("no log-probabilities of a prompt") from None
    return Scored(_numbers(own), _numbers(largest))


def likeliest_body(settings: EndpointSettings, prompt: Sequence[int], target: Sequence[int], top_k: int) -> Any:
    """The request for the likeliest tokens at each position of a target after its prompt."""
    return score_body(settings, prompt, target) | {"prompt_logprobs": top_k}


def read_likeliest(payload: Any, prompt: Sequence[int], target: Sequence[int]) -> list[list[tuple[int, float]]]:
    """What a completion names at each position of the target: tokens with log-probabilities, the likeliest first.

    Raises ValueError if it does not tell of all that was sent.
    """
    try:
        entries = payload["choices"][0]["prompt_logprobs"]
        if len(entries) != len(prompt) + len(target):
            raise ValueError("not as many as tokens")
        told = [{int(number): each["logprob"] for number, each in entry.items()} for entry in entries[len(prompt) :]]
    except (LookupError, TypeError, AttributeError):
        raise ValueError("no log-probabilities of a prompt") from None
    if any(number not in row for number, row in zip(target, told, strict=True)):
        raise ValueError("of other tokens than were sent")
    rows = [zip(row, _numbers(list(row.values())), strict=True) for row in told]
    return [sorted(row, key=lambda pair: -pair[1]) for row in rows]


def write_body(settings: EndpointSettings, prompt: Sequence[int], how: Writing, ends: Sequence[int], row: int) -> Any:
    """The request for what is written after a prompt, which is number `row` of those that `how` has seeds for."""
    body = {"model": settings.model, "prompt": list(prompt), "max_tokens": how.max_new_tokens, "logprobs": 1}
    body |= {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k or -1, **PLAIN}
    body |= {"stop_token_ids": list(ends), "return_token_ids": True}
    return body if how.seeds is None else body | {"seed": how.seeds[row]}


def read_written(payload: Any, tokenizer: Any, num_tokens: int, ends: Sequence[int], limit: int) -> Written:
    """What a completion has written: its token ids, or where the server tells none those of its text.

    An end that the server cuts off is put back. Raises ValueError if it is no completion.
    """
    try:
        choice = payload["choices"][0]
        ids, finish = choice.get("token_ids"), choice["finish_reason"]
        if ids is None:
            ids = tokenizer(choice["text"], add_special_tokens=False, verbose=False)["input_ids"]
        ids, truncated = [int(number) for number in ids][:limit], finish == "length"
        told = (choice.get("logprobs") or {}).get("token_logprobs")
        log_prob = None if not told else math.fsum(_numbers(told))
    except (LookupError, TypeError, AttributeError):
        raise ValueError("no completion") from None
    if finish not in ("length", "stop") or (truncated and not ids):
        raise ValueError("no whole completion")
    if any(not 0 <= number < num_tokens for number in ids):  # a row that stands for no token, or another tokenizer
        raise ValueError("no tokens of the tokenizer")
    if not truncated and (not ids or ids[-1] not in ends):
        ids = [*ids, ends[0]]
    return Written(ids, truncated, log_prob)


def _numbers(values: Sequence[Any]) -> list[float]:
    found = [float(value) for value in values]
    if not all(math.isfinite(value) and value <= 1e-3 for value in found):
        raise ValueError("no log-probabilities")
    return found
