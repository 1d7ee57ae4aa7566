"""A teacher behind a server: an artifact that says what it is, and a model that asks it.

What the teacher is, for keys: the name that the server has for it, and the content of its tokenizer. Where it is
(`url`) is in no key: another machine, or another port, computes nothing anew. A name can come to stand for another
model; but the same model's log-probabilities differ in their last bits from machine to machine, so that they can be no
part of a key: rounded, some would lie on a border, and a server that is down would hide what was computed long ago.
They are written down with the artifact, for a few known tokens, and whoever asks the server later looks first whether
it still gives the same ones, within TOLERANCE.
"""

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_core.models.backends.remote import Likeliest, RemoteConfig, RemoteModel, Scored, Writing, Written
from kd_core.models.loading import Tokenizer, load_tokenizer, read_configs
from kd_core.models.special_ids import special_ids, vocabulary_size
from tasks.compute.completions import (
    EndpointSettings,
    likeliest_body,
    read_likeliest,
    read_scored,
    read_written,
    score_body,
    write_body,
)
from tasks.endpoints.address import api_key
from tasks.endpoints.answers import Answers, content_key
from tasks.endpoints.asking import ask_all
from tasks.endpoints.endpoint import ContentFilterError, Endpoint, EndpointError
from tasks.store.artifacts import Artifact, StoreError

ANSWERS = "answers"  # of a server, among what a stage keeps until it is done
TOLERANCE = 0.1  # nats a token, the mean over the probe: above what precision and machine do, below another model
PROBE = (
    "The committee, which had met twice in 1987, found that naïve estimates of the river's flow were wrong by a factor "
    "of three; def f(x): return x ** 2  # unlike the others. «Où est la gare ?», she asked, and nobody answered."
)
VOCABULARY_PROBE = 256  # tokens, spread evenly over the vocabulary


@dataclass(frozen=True)
class Served(Artifact):
    """A teacher's artifact with where it can be asked now. To keys it is the artifact."""

    endpoint: EndpointSettings


def reached(teacher: Artifact, endpoint: EndpointSettings | None) -> Artifact:
    """The same teacher, with its address where it has one."""
    return teacher if endpoint is None else Served(teacher.stage, teacher.key, teacher.path, endpoint)


class ServedModel(RemoteModel):
    """Asks the server for what was never asked before. Answers lie, one a file, in a directory of their own."""

    def __init__(self, config: RemoteConfig, tokenizer: Tokenizer, teacher: Served, answers: Path) -> None:
        self.config = self.generation_config = config
        self._tokenizer, self._teacher, self._answers = tokenizer, teacher, Answers(answers)
        self._settings, self._num_tokens = teacher.endpoint, vocabulary_size(tokenizer)

    def score(self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Scored]:
        pairs = [(list(prompt), list(target)) for prompt, target in zip(prompts, targets, strict=True)]
        asked = [{"prompt": prompt, "target": target} for prompt, target in pairs]
        return [Scored(**each) for each in self._ask(asked, self._score_one)]

    def write(self, prompts: Sequence[Sequence[int]], how: Writing) -> list[Written]:
        named = self.config.eos_token_id
        ends = named if isinstance(named, list) else [named]
        asked = [write_body(self._settings, prompt, how, ends, row) for row, prompt in enumerate(prompts)]

        def write_one(endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, Any]:
            def read(payload: Any) -> Written:
                return read_written(payload, self._tokenizer, self._num_tokens, ends, how.max_new_tokens)

            return asdict(endpoint.ask("/completions", body, read, "a completion in tokens of teacher.tokenizer"))

        return [Written(**each) for each in self._ask(asked, write_one)]

    def likeliest(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], top_k: int
    ) -> list[Likeliest]:
        top_k = min(top_k, self._num_tokens)
        pairs = [(list(prompt), list(target)) for prompt, target in zip(prompts, targets, strict=True)]
        asked = [{"prompt": prompt, "target": target, "top_k": top_k} for prompt, target in pairs]

        def ask_one(endpoint: Endpoint, each: Mapping[str, Any]) -> dict[str, Any]:
            told = ask_likeliest(endpoint, self._settings, each["prompt"], each["target"], top_k)
            rows = [self._named(row, top_k) for row in told]
            ids, log_probs = ([[pair[part] for pair in row] for row in rows] for part in (0, 1))
            return {"ids": _packed(ids, "<i4"), "log_probs": _packed(log_probs, "<f4")}

        nothing = {"ids": "", "log_probs": ""}  # of a row that has no token, as of a rank that only keeps step
        told = iter(self._ask([each for each in asked if each["target"]], ask_one))
        return [
            Likeliest(_unpacked(each["ids"], "<i4", top_k), _unpacked(each["log_probs"], "<f4", top_k))
            for each in (next(told) if row["target"] else nothing for row in asked)
        ]

    def _named(self, row: list[tuple[int, float]], width: int) -> list[tuple[int, float]]:
        """Without rows of a padded embedding, which a teacher that is here leaves out too; their places are empty."""
        named = [pair for pair in row if pair[0] < self._num_tokens]
        if not named:
            raise EndpointError(
                f"the likeliest of {self._settings.model} at a position is {row[0][0]}, and teacher.tokenizer has "
                f"{self._num_tokens} tokens\nname the tokenizer of the model that is served"
            )
        return named + [(named[0][0], -math.inf)] * (width - len(named))

    def _score_one(self, endpoint: Endpoint, asked: Mapping[str, Any]) -> dict[str, Any]:
        return asdict(ask_score(endpoint, self._settings, asked["prompt"], asked["target"]))

    def _ask(
        self, asked: Sequence[dict[str, Any]], ask: Callable[[Endpoint, Any], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The answers, in order; equal questions are one."""
        keys = [content_key(each) for each in asked]
        different = dict(zip(keys, asked, strict=True))
        try:
            found = ask_all(
                lambda: self._endpoint,
                self._answers,
                different,
                lambda endpoint, each: {"answer": ask(endpoint, each)},
                self._settings.requests_in_flight,
            )
        except ContentFilterError:
            raise EndpointError(
                "the content filter of the teacher's server refused a text\nserve the teacher without one"
            ) from None
        return [found[key]["answer"] for key in keys]

    @cached_property
    def _endpoint(self) -> Endpoint:
        """Opened when something is really to be asked, and looked at first. Raises StoreError for another model."""
        endpoint = open_endpoint(self._settings, self._settings.retries)
        noted = json.loads((self._teacher.path / "reference.json").read_text(encoding="utf-8"))["probe"]
        now = probe(endpoint, self._settings, self._tokenizer)
        apart = sum(abs(one - other) for one, other in zip(noted, now, strict=True)) / len(now)
        if apart > TOLERANCE:
            endpoint.close()
            raise StoreError(
                f"the teacher at {endpoint.base_url} is not the one that was there before: its log-probabilities of "
                f"{len(now)} known tokens are {apart:.2f} nats apart\n"
                f"serve the same model again, or call it otherwise there (teacher.endpoint.model), or delete "
                f"{self._teacher.path}"
            )
        return endpoint


def load_served(teacher: Served, location: str | Path, revision: str | None, answers: Path) -> tuple[ServedModel, Any]:
    """The model that asks, and its tokenizer, which lies at `location`. Nothing is asked yet."""
    tokenizer = load_tokenizer(location, revision)
    believed = special_ids(*read_configs(location, revision), tokenizer, str(location))
    return ServedModel(RemoteConfig(believed.as_config, believed.pad), tokenizer, teacher, answers), tokenizer


def open_endpoint(settings: EndpointSettings, retries: int) -> Endpoint:
    """A client for the server. Raises ValueError if a key is missing."""
    return Endpoint(
        settings.names,
        base_url=settings.base_url,
        key=api_key("the teacher", settings.base_url, settings.key_env),
        timeout_seconds=settings.timeout_seconds,
        retries=retries,
    )


def probe_once(
    settings: EndpointSettings, tokenizer: Tokenizer, *, retries: int | None = None, top_k: int = 0
) -> list[float]:
    """`probe`, over a connection of its own; with `top_k`, that many likeliest tokens are asked for as well."""
    with closing(open_endpoint(settings, settings.retries if retries is None else retries)) as endpoint:
        found = probe(endpoint, settings, tokenizer)
        if top_k:
            ids = _probe_ids(tokenizer)
            ask_likeliest(endpoint, settings, ids[:1], ids[1:], min(top_k, vocabulary_size(tokenizer)))
        return found


def probe(endpoint: Endpoint, settings: EndpointSettings, tokenizer: Tokenizer) -> list[float]:
    """The teacher's log-probabilities of a few known tokens.

    Raises ValueError if its tokenizer is not this one, told by what it makes of words from all over the vocabulary, or
    if it does not tell log-probabilities.
    """
    text = vocabulary_text(tokenizer)
    ours = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    body = {"model": settings.model, "prompt": text, "add_special_tokens": False}
    root = endpoint.base_url.removesuffix("/v1")
    theirs = endpoint.ask(
        f"{root}/tokenize", body, lambda payload: [int(each) for each in _tokens(payload)], "token ids"
    )
    if ours != theirs:
        pairs = zip([*ours, None], [*theirs, None], strict=False)
        place, (one, other) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        shown = "nothing" if one is None else f"{one} ({tokenizer.convert_ids_to_tokens(one)!r})"
        raise ValueError(
            f"the teacher at {endpoint.base_url} has another tokenizer: token {place} of a text is {other} there, and "
            f"{shown} by teacher.tokenizer\nname the tokenizer of the model that is served, and a student that has it"
        )
    ids = _probe_ids(tokenizer)
    return list(ask_score(endpoint, settings, ids[:1], ids[1:]).log_probs)


def _probe_ids(tokenizer: Tokenizer) -> list[int]:
    return list(tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"])


def ask_score(endpoint: Endpoint, settings: EndpointSettings, prompt: list[int], target: list[int]) -> Scored:
    """What the server makes of a target after its prompt."""
    what = f"log-probabilities of all {len(prompt) + len(target)} tokens that it was sent"
    body = score_body(settings, prompt, target)
    return endpoint.ask("/completions", body, lambda payload: read_scored(payload, prompt, target), what)


def ask_likeliest(
    endpoint: Endpoint, settings: EndpointSettings, prompt: list[int], target: list[int], top_k: int
) -> list[list[tuple[int, float]]]:
    """The `top_k` likeliest tokens at each position of a target. Raises EndpointError if the server names fewer."""
    what = f"the likeliest tokens at each of the {len(prompt) + len(target)} positions that it was sent"
    body = likeliest_body(settings, prompt, target, top_k)
    told = endpoint.ask("/completions", body, lambda payload: read_likeliest(payload, prompt, target), what)
    fewest = min(map(len, told), default=top_k)
    if fewest < top_k:
        raise EndpointError(
            f"the teacher at {endpoint.base_url} tells {fewest} log-probabilities of a position, not the {top_k} that "
            f"it was asked for\nstart it with more (vLLM: --max-logprobs={top_k}), or set labels.top_k={fewest}"
        )
    return [row[:top_k] for row in told]


def vocabulary_text(tokenizer: Tokenizer) -> str:
    """Words from all over a vocabulary, its last one among them."""
    ids = sorted(tokenizer.get_vocab().values())
    step = max(1, len(ids) // VOCABULARY_PROBE)
    return " ".join(tokenizer.decode([number]) for number in [*ids[::step], ids[-1]])


def tokenizer_content(tokenizer: Tokenizer) -> str:
    """SHA-256 of all that a tokenizer does to a text, and of its chat template; not of what it was last told to cut."""
    state: Any = tokenizer.get_vocab()
    if hasattr(tokenizer, "backend_tokenizer"):
        state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    text = json.dumps([state, tokenizer.eos_token, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _packed(rows: Sequence[Sequence[float]], dtype: str) -> str:
    """Numbers as text that is short and exact: there are many."""
    return base64.b64encode(np.array(rows, dtype).tobytes()).decode("ascii")


def _unpacked(text: str, dtype: str, width: int) -> Tensor:
    """Shapes: -> (T, width)."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).reshape(-1, width).copy())


def _tokens(payload: Any) -> list[Any]:
    if not isinstance(payload, dict) or not isinstance(payload.get("tokens"), list):
        raise ValueError("no tokens")
    return list(payload["tokens"])
