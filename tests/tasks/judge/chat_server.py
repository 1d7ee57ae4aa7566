"""A judge on 127.0.0.1 that speaks the chat-completions protocol, as well or as badly as a test wants it to."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """One request as it came in. number: from 0, over the server's life."""

    number: int
    path: str
    headers: dict[str, str]  # names in lower case
    body: dict[str, Any]

    @property
    def text(self) -> str:
        return str(self.body["messages"][-1]["content"])


@dataclass
class Answer:
    """What to send. body: JSON, or bytes as they are. hang_up: send half of it and close the connection."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False


Judge = Callable[[Asked], Answer]


def says(text: str, *, probabilities: dict[str, float] | None = None, **choice: Any) -> Answer:
    """A completion; its last character is a token with these alternatives, if given."""
    logprobs = None
    if probabilities is not None:
        top = [{"token": token, "bytes": None, "logprob": math.log(p)} for token, p in probabilities.items()]
        own = math.log(probabilities[text[-1]])
        logprobs = {
            "content": [
                {"token": text[:-1], "bytes": list(text[:-1].encode()), "logprob": -0.5, "top_logprobs": []},
                {"token": text[-1], "bytes": list(text[-1].encode()), "logprob": own, "top_logprobs": top},
            ]
        }
    whole = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Answer({"id": "1", "object": "chat.completion", "choices": [whole | {"logprobs": logprobs} | choice]})


def fails(status: int, message: str = "overloaded", **headers: str) -> Answer:
    """An error in the protocol's form. A header's `_` stands for `-`."""
    code = headers.pop("code", None)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": {"message": message, "type": "error", "code": code}}, status, named)


@dataclass
class ChatServer:
    """A running server: where it is, and what it was asked so far."""

    base_url: str
    asked: list[Asked]

    @property
    def texts(self) -> list[str]:
        return [each.text for each in self.asked]


@contextmanager
def chat_server(judge: Judge) -> Iterator[ChatServer]:
    """Serve on a free port until the block ends."""
    asked: list[Asked] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                request = Asked(
                    len(asked), self.path, {name.lower(): value for name, value in self.headers.items()}, body
                )
                asked.append(request)
            answer = judge(request)
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            try:
                self.send_response(answer.status)
                for name, value in ({"Content-Type": "application/json"} | answer.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if answer.hang_up else content)
            except OSError:
                pass  # the client has given up waiting
            self.close_connection |= answer.hang_up

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: what was asked is in `asked`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield ChatServer(f"http://127.0.0.1:{server.server_port}/v1", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
