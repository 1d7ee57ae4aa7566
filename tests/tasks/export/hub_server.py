"""The hub on 127.0.0.1: the endpoints that a push uses, and every request as it came in."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "0" * 40


@dataclass
class Hub:
    """What it holds and was asked. refuses: the status that every request is answered with."""

    endpoint: str = ""
    refuses: int = 0
    models: dict[str, bool] = field(default_factory=dict)  # name -> whether it is private
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of one request."""
        if self.refuses:
            return self.refuses, {"error": "no, not with hf_secret_token"}
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            there = name in self.models
            self.models.setdefault(name, asked.get("visibility") == "private" or asked.get("private") is True)
            return 409 if there else 200, {"url": f"{self.endpoint}/{name}", "error": "there already"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if not path.startswith("/api/models/"):
            return 404, {"error": "not played here"}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return 200, {
                "files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]
            }
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitOid": SHA, "commitUrl": f"{self.endpoint}/{name}/commit/{SHA}", "success": True}
        return 200, {"id": name, "private": self.models[name], "sha": SHA, "siblings": [], "tags": [], "downloads": 0}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve on a free port until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self._body()
            hub.asked.append(f"{self.command} {self.path}")
            if self.path.startswith(("/api/repos/", "/api/models/")):
                hub.tokens.add(self.headers.get("Authorization", ""))
            status, content = hub.answer(self.command, self.path, body)
            sent = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PUT = answer

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while length := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
