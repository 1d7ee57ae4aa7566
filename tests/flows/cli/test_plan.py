"""`distill plan` says what a cluster's workers would train together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.cli import main as cli

RECIPES = Path(__file__).parents[2] / "e2e" / "prefect.yaml"


def test_more_workers_than_this_machine_has_cpus_for_are_said_by_plan_and_refused_by_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path))
    asked = ["tiny", "--prefect-file", str(RECIPES), "--engine", "ray", "--workers", "1000"]
    said = f"1000 workers of 1 CPU each do not fit on this machine's {os.cpu_count()}"
    assert cli.main(["plan", *asked]) == 0
    told = capsys.readouterr()
    assert f"WARNING: here a run is refused: {said}" in told.err.splitlines()
    assert "llmr" in told.out
    assert cli.main(["run", *asked]) == 1
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "runs").iterdir())


def test_a_device_that_this_machine_lacks_is_said_by_plan_and_refused_by_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path))
    asked = ["tiny", "--prefect-file", str(RECIPES), "--device", "cuda:99"]
    said = "runtime.device 'cuda:99' cannot be used here: "
    assert cli.main(["plan", *asked]) == 0
    told = capsys.readouterr()
    assert any(line.startswith(f"WARNING: here a run is refused: {said}") for line in told.err.splitlines())
    assert "llmr" in told.out
    assert cli.main(["run", *asked]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], []),
        (["--engine", "ray", "--workers", "2"], ["Trained by 2 workers together: teacher, pre_distill, llmr"]),
        (["--engine", "ray"], ["Trained by all workers together: teacher, pre_distill, llmr"]),
    ],
)
def test_what_all_workers_train_together_is_said(
    options: list[str],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path))
    assert cli.main(["plan", "tiny", "--prefect-file", str(RECIPES), *options]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("Trained")] == said
