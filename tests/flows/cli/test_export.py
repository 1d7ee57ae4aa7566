"""`distill export`: where to, and what is asked for before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli import main as cli
from tests.tasks.export.hub_server import hub_server

PROJECT = Path(__file__).parents[3]
RECIPES = PROJECT / "tests" / "e2e" / "prefect.yaml"
TOKEN = "hf_secret_token"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(PROJECT)  # the recipes name their data from there
    return tmp_path / "home"


def test_without_a_token_nothing_is_looked_up_or_written(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "no-such-run", str(tmp_path / "out"), "--push", "ada/student"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: nothing can be pushed without a token",
        "set HF_TOKEN to one of the hub's that may write",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["tiny"], ["tiny", "out", "--public"]])
def test_a_place_is_asked_for(home: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert cli.main(["export", *words]) == 1
    assert capsys.readouterr().err.startswith("error: where to?\ngive a directory, --push USER/NAME, or both")


def test_an_export_is_pushed_and_what_is_refused_stays(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["run", "tiny", "--prefect-file", str(RECIPES)]) == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        capsys.readouterr()
        assert cli.main(["export", "tiny", "--push", "ada/student"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"pushed to {hub.endpoint}/ada/student, private"
        assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "student").iterdir()}
        assert cli.main(["export", "tiny", "--push", "ada/student"]) == 1
        assert capsys.readouterr().err.splitlines() == [
            "error: student, where this export would lie, is there already",
            "name a new directory: distill export tiny DIRECTORY --push ada/student",
        ]
        hub.refuses = 403
        assert cli.main(["export", "tiny", "second", "--push", "ada/student", "--public"]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-2:] == [
        f"error: the hub at {hub.endpoint} does not let this token write to ada/student (403)",
        "second stays as it was exported; to push it: hf upload ada/student second",
    ]
    assert (tmp_path / "second" / "README.md").is_file()
    logs = "".join(path.read_text() for path in (home / "logs").glob("*"))
    assert "403" in logs
    assert TOKEN not in said.out + said.err + logs
