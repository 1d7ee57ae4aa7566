"""The local server on machines as they are: odd folders, proxies in the environment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.utilities.processutils import command_from_string
from sqlalchemy.engine import make_url

from flows.stack import server

ODD = ["My Projects", 'it\'s "quoted"', "100%20", "$HOME", "a?b=1", "#1", "[x]*", "{{ y }}", "é", "two\nlines"]


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    """Something healthy on this machine."""
    with HTTPServer((server.HOST, 0), Healthy) as there:
        thread = threading.Thread(target=there.serve_forever)
        thread.start()
        yield f"http://{server.HOST}:{there.server_port}"
        there.shutdown()
        thread.join()


@pytest.mark.parametrize("folder", ODD)
def test_the_workers_command_is_what_we_mean_in_any_folder(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None: ...

        def create_work_pool(self, pool: Any, overwrite: bool) -> None:
            made.append(pool.base_job_template["variables"]["properties"])

    monkeypatch.setattr(server.sys, "executable", f"/srv/{folder}/.venv/bin/python")
    monkeypatch.setattr(server, "_client", lambda url: Client())
    server.arrange("", Path("/srv") / folder)
    assert command_from_string(made[0]["command"]["default"]) == [
        f"/srv/{folder}/.venv/bin/python",
        "-m",
        "prefect.engine",
    ]


@pytest.mark.parametrize("folder", ODD)
def test_prefects_database_lies_in_its_home_in_any_folder(folder: str) -> None:
    root = Path("/srv") / folder
    url = make_url(server.environment(root, "")["PREFECT_SERVER_DATABASE_CONNECTION_URL"])
    assert (url.database, dict(url.query)) == (str(root / "prefect" / "prefect.db"), {})


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_not_asked_for_this_machine(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    assert server.is_healthy(url)
    for each, value in server.environment(Path("/srv"), url).items():
        monkeypatch.setenv(each, value)
    assert httpx.get(url).text == "true"  # as Prefect's client asks


def test_the_users_own_exceptions_from_the_proxy_stay() -> None:
    environment = server.environment(Path("/srv"), "", {"no_proxy": "intra.example"})
    assert environment["NO_PROXY"] == environment["no_proxy"] == "intra.example,127.0.0.1"
