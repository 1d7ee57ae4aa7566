"""`push`: all files on the hub, private unless said otherwise, and a directory that stays whatever the hub says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.export.push import check_push, push
from tests.tasks.export.hub_server import Hub, hub_server

TOKEN = "hf_secret_token"
NAME = "ada/student"
FILES = {"README.md": b"---\ntags: [t5]\n---\n# a student\n", "model.safetensors": bytes(range(256)) * 8}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "out"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\n")  # as a file's content is exported
        yield server


@pytest.mark.parametrize("public", [False, True])
def test_every_file_is_on_the_hub_private_unless_it_is_said_to_be_public(
    hub: Hub, directory: Path, public: bool
) -> None:
    assert push(directory, NAME, public=public) == f"{hub.endpoint}/{NAME}"
    assert hub.models == {NAME: not public}
    assert hub.files == FILES
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_pushed_again_it_is_a_further_commit(hub: Hub, directory: Path) -> None:
    push(directory, NAME, public=False)
    (directory / "model.safetensors").write_bytes(b"better")
    push(directory, NAME, public=False)
    assert hub.files["model.safetensors"] == b"better"


@pytest.mark.parametrize("public", [False, True])
def test_a_model_that_is_there_and_as_visible_as_it_should_not_be_is_left_alone(
    hub: Hub, directory: Path, public: bool
) -> None:
    hub.models[NAME] = public
    with pytest.raises(ValueError, match=NAME) as raised:
        push(directory, NAME, public=public)
    assert str(raised.value).split("\n") == [
        f"{NAME} is on the hub already, and it is not {'public' if public else 'private'}",
        f"{directory} stays as it was exported; give another name, or change its visibility on the hub",
    ]
    assert hub.files == {}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "does not accept the token in HF_TOKEN (401)"),
        (403, "does not let this token write to ada/student (403)"),
        (400, "answers 400: "),
    ],
)
def test_a_refusal_is_one_line_that_names_the_directory_and_no_token(
    hub: Hub, directory: Path, status: int, said: str
) -> None:
    hub.refuses = status
    with pytest.raises(ValueError, match="the hub at http://127") as raised:
        push(directory, NAME, public=False)
    problem, advice = str(raised.value).split("\n")
    assert said in problem
    again = "to push it, export it again with --push, into another directory"  # and not by what may publish it
    assert advice == f"{directory} stays as it was exported; {again}"
    assert "secret" not in str(raised.value)
    assert raised.value.__suppress_context__  # the traceback in the log has no more than the message
    assert {path.name for path in directory.iterdir()} == set(FILES)


def test_a_hub_that_nobody_answers_at_is_one_line(hub: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"the hub at http://127.0.0.1:9 cannot be reached: .+\n") as raised:
        push(directory, NAME, public=True)
    assert str(raised.value).endswith(f"hf upload {NAME} {directory}")
    assert {path.name for path in directory.iterdir()} == set(FILES)


@pytest.mark.parametrize("token", [None, "", " \n"])
def test_without_a_token_it_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match="nothing can be pushed without a token\nset HF_TOKEN"):
        check_push(NAME)


@pytest.mark.parametrize("token", ["hf_first\nhf_second", "hf_first hf_second", "hf_fürst"])
def test_what_can_be_no_token_is_refused_beforehand_and_not_shown(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match=r"^HF_TOKEN is no token: [^\n]+\nset HF_TOKEN to one of") as raised:
        check_push(NAME)
    assert "hf_" not in str(raised.value)


@pytest.mark.parametrize("name", ["ada/student", "Ada-1/a.b_c-d", "_/x"])
def test_a_name_of_the_hubs_will_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_push(name)


NO_NAMES = [
    "student",
    "a/b/c",
    "ada/",
    "ada/my student",
    "",
    "ada/..",
    "ada/.",
    "../x",
    "ada/-x",
    "ada/x--y",
    "ada/x\n",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_is_none_of_the_hubs_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ValueError, match="a model on the hub is called user/name, got"):
        check_push(name)
