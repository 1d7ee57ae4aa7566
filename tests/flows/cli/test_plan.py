"""`distill plan` says what a cluster's workers would train together."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli import main as cli

RECIPES = Path(__file__).parents[2] / "e2e" / "prefect.yaml"


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
