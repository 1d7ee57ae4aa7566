"""`distill deploy` where there is nothing to deploy to, said in two lines before anything is registered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.context import get_settings_context
from prefect.settings import (
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_PROFILES_PATH,
    temporary_settings,
)

from flows.cli import main as cli
from flows.stack import deploy

RECIPES = Path(__file__).parents[2] / "e2e" / "prefect.yaml"


@pytest.fixture(autouse=True)
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this user's profiles would be. There are none, and nothing in the environment."""
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "home"))
    with temporary_settings({PREFECT_PROFILES_PATH: tmp_path / "profiles.toml", PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield tmp_path / "profiles.toml"


@contextmanager
def answering(code: int, body: str) -> Iterator[str]:
    """A server that gives one answer to everything."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as there:
        thread = threading.Thread(target=there.serve_forever)
        thread.start()
        yield f"http://ada:secret@127.0.0.1:{there.server_port}/api"
        there.shutdown()
        thread.join()


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert cli.main(["deploy", "--prefect-file", str(RECIPES), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "secret" not in captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 2
    return lines


def test_without_an_address_the_local_stack_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Not that of pyproject.toml, which is the local stack's."""
    first, second = said(capsys)
    assert first == "error: no Prefect server is named: PREFECT_API_URL is not set, nor is it in the active profile"
    assert second.endswith("distill up")


@pytest.mark.parametrize("url", ["prefect:4200", "ftp://prefect/api", "/api"])
def test_what_is_no_address_is_named(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    assert said(capsys)[0] == f"error: PREFECT_API_URL must be the address of an API, got {url!r}"


def test_a_server_that_nobody_answers_for_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://ada:secret@127.0.0.1:9/api")
    assert said(capsys)[0].startswith("error: no Prefect server answers at http://127.0.0.1:9/api: ")


@pytest.mark.parametrize(
    ("code", "body", "told", "to_do"),
    [
        (401, "{}", "refuses this user (HTTP 401)", "PREFECT_API_KEY"),
        (403, "{}", "refuses this user (HTTP 403)", "PREFECT_API_AUTH_STRING"),
        (404, "{}", "does not answer as a Prefect API (HTTP 404)", "PREFECT_API_URL"),
        (500, "{}", "does not answer as a Prefect API (HTTP 500)", "PREFECT_API_URL"),
        (200, "<html>", "is no Prefect API", "PREFECT_API_URL"),
        (200, '{"version": 3}', "is no Prefect API", "PREFECT_API_URL"),
        (200, '"2.20.1"', "is version 2.20.1, and this project works with 3.", "use a server of version 3"),
    ],
)
def test_what_answers_otherwise_than_a_prefect_of_ours_is_named(
    code: int,
    body: str,
    told: str,
    to_do: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with answering(code, body) as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        first, second = said(capsys)
    assert told in first
    assert to_do in second


@pytest.mark.parametrize(
    ("made", "lines"),
    [
        (
            "process, made now",
            [
                "On the machine that computes:",
                "  cd '/srv/my runs'",
                "  PREFECT_API_URL=http://prefect:4200/api .venv/bin/prefect worker start --pool gpu",
            ],
        ),
        (
            "docker, made now",
            [
                "Where its worker is to run, with prefect-docker installed:",
                "  PREFECT_API_URL=http://prefect:4200/api prefect worker start --pool gpu",
            ],
        ),
        (
            "kubernetes",
            [
                "Where its worker is to run, with prefect-kubernetes installed:",
                "  PREFECT_API_URL=http://prefect:4200/api prefect worker start --pool gpu",
            ],
        ),
        (
            "ecs:push",
            ["What starts the runs of a pool of type ecs:push: https://docs.prefect.io/v3/concepts/work-pools"],
        ),
    ],
)
def test_what_is_left_to_do_goes_by_the_pools_type(made: str, lines: list[str]) -> None:
    runs = [{"name": "tiny", "entrypoint": "flows/distill.py:distill"}]
    url = "http://ada:secret@prefect:4200/api"
    first, *rest = deploy._what_next(runs, made, "gpu", Path("/srv/my runs"), url).splitlines()
    assert first == f"1 runs are registered at http://prefect:4200/api, for the work pool gpu ({made})."
    if not made.startswith("process"):
        image = (
            "In the pool's job variables, name an image that holds this project, set up in '/srv/my runs'; a GPU; and"
        )
        assert rest.pop(0) == f"{image} a volume for DISTILL_HOME."
    assert rest == [
        *lines,
        "From any machine:",
        "  PREFECT_API_URL=http://prefect:4200/api prefect deployment run distill/tiny --watch",
    ]


def test_the_profiles_address_counts(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    active = get_settings_context().profile.name
    profiles.write_text(f'[profiles.{active}]\nPREFECT_API_URL = "https://prefect.example/api"\n')
    assert deploy.address() == "https://prefect.example/api"
    monkeypatch.setenv("PREFECT_API_URL", "http://other.example/api")
    assert deploy.address() == "http://other.example/api"
