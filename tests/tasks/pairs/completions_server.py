"""A server on 127.0.0.1 that speaks vLLM's completions protocol, or SGLang's, over a real tiny model of transformers.

What it computes is the stock model's: full logits of the whole text, row by row. Nothing of the code under test.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Body = dict[str, Any]


@dataclass
class CompletionsServer:
    """A running server: where it is, and what it was asked so far, by path."""

    url: str = ""
    asked: list[tuple[str, Body]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def completions(self) -> list[Body]:
        """The bodies of all requests for completions."""
        return [body for path, body in self.asked if path == "/v1/completions"]


class Served:
    """The model and its tokenizer, and the two protocols' answers."""

    def __init__(self, directory: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self._one_at_a_time = threading.Lock()

    @torch.no_grad()
    def _log_probs(self, ids: list[int]) -> torch.Tensor:
        """(T, V): of what comes after each token."""
        with self._one_at_a_time:
            log_probs: torch.Tensor = self.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(1)
        return log_probs

    def tokenize(self, body: Body) -> Body:
        ids = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
        return {"tokens": ids, "count": len(ids), "max_model_len": 128}

    def complete(self, body: Body) -> Body:
        prompt, written, rows = body["prompt"], [], []
        assert all(isinstance(each, int) for each in prompt), "token ids are sent, not text"
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        named, reason = self.model.generation_config.eos_token_id, "length"
        stops = {*(named if isinstance(named, list) else [named]), *body.get("stop_token_ids", [])}
        while len(written) < body["max_tokens"]:
            log_p = self._log_probs([*prompt, *written])[-1]
            token = int(log_p.argmax())
            if body["temperature"] > 0:
                token = int(torch.multinomial((log_p / body["temperature"]).softmax(0), 1, generator=generator))
            rows.append((token, log_p))
            written.append(token)
            if token in stops:
                reason = "stop"
                break
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(written, skip_special_tokens=True),
            "finish_reason": reason,
            "logprobs": self._logprobs(rows, top=1),
            "prompt_logprobs": None,
        }
        before = self._log_probs(prompt)[:-1]
        if body.get("prompt_logprobs"):
            pairs = zip(prompt[1:], before, strict=True)
            top = body["prompt_logprobs"]
            choice["prompt_logprobs"] = [None, *(self._entry(token, log_p, top) for token, log_p in pairs)]
        if body.get("echo"):
            whole = self._logprobs([*zip(prompt[1:], before, strict=True), *rows], top=1)
            whole["token_logprobs"].insert(0, None)
            whole["top_logprobs"].insert(0, None)
            choice["logprobs"] = whole
        if body.get("return_token_ids"):
            choice |= {"token_ids": written, "prompt_token_ids": prompt}
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}

    def _entry(self, token: int, log_p: torch.Tensor, top: int) -> Body:
        """vLLM's: the token's own, and the likeliest."""
        ids = dict.fromkeys([token, *log_p.topk(top).indices.tolist()])
        rank = {number: 1 + int((log_p > log_p[number]).sum()) for number in ids}
        return {
            str(number): {
                "logprob": float(log_p[number]),
                "rank": rank[number],
                "decoded_token": self.tokenizer.decode([number]),
            }
            for number in ids
        }

    def _logprobs(self, rows: list[tuple[int, torch.Tensor]], top: int) -> Body:
        """OpenAI's: tokens by their text."""
        best = [log_p.topk(top) for _, log_p in rows]
        return {
            "tokens": [self.tokenizer.decode([token]) for token, _ in rows],
            "token_logprobs": [float(log_p[token]) for token, log_p in rows],
            "top_logprobs": [
                {self.tokenizer.decode([i]): value for value, i in zip(values.tolist(), ids.tolist(), strict=True)}
                for values, ids in best
            ],
        }


Spoil = Callable[[int, str, Body, Body], tuple[int, Any]]  # number of the request, path, body, answer -> status, answer


def well(number: int, path: str, body: Body, answer: Body) -> tuple[int, Any]:
    """As it is."""
    return 200, answer


@contextmanager
def completions_server(directory: Path, spoil: Spoil = well) -> Iterator[CompletionsServer]:
    """Serve the model of a directory on a free port until the block ends; `spoil` may make its answers worse."""
    served, running, lock = Served(directory), CompletionsServer(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                number = len(running.asked)
                running.asked.append((self.path, body))
                running.keys.append(self.headers.get("authorization"))
            answers = {"/v1/completions": served.complete, "/tokenize": served.tokenize}
            status, answer = 404, {"error": {"message": "no such path"}}
            if self.path in answers:
                status, answer = spoil(number, self.path, body, answers[self.path](body))
            content = json.dumps(answer).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client has given up waiting

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: what was asked is in `asked`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    running.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
