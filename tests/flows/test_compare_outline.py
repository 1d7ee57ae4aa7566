"""Comparisons: the run that is compared is looked up in the catalogue that named the comparison."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli import main as cli
from flows.compare_outline import named
from tests.tasks.tiny_texts import PARAMETERS, write_texts

GRID: dict[str, Any] = {
    "run": "tiny",
    "variants": {"plain": {"method.kind": "next_token"}, "ours": {}},
    "sweep": "method.alpha",
    "values": [0.0, 1.0],
    "seeds": [0],
}


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of a name that is found only where it is given, with a tiny run and a comparison of it."""
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run = {"name": "tiny", "entrypoint": "flows/distill_text.py:distill_text"}
    run |= {"parameters": PARAMETERS | {"dataset": write_texts(tmp_path)}}
    grid = {"name": "tiny", "entrypoint": "flows/compare.py:compare", "parameters": GRID}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"deployments": [run, grid]}))
    return path


def test_the_run_is_looked_up_in_the_file_that_was_given(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "compare/tiny", "--prefect-file", "mine.yaml"]) == 0
    stages = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert stages.count("evaluate") == 4  # two variants at two values
    assert stages[-1] == "compare"


def test_a_catalogue_that_the_parameters_name_comes_first(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "compare/tiny", "--prefect-file", str(catalogue), "--set", "catalogue=nowhere.yaml"]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: there is no catalogue of runs at nowhere.yaml\n")


def test_without_a_file_the_projects_own_catalogue_is_read(catalogue: Path) -> None:
    with pytest.raises(ValueError, match="there is no run called 'tiny'"):
        named("tiny", None)
    assert named("tiny", str(catalogue)).parameters["windows"] == {"context": 8, "stride": 7}


def test_what_any_cell_would_ask_is_asked_for_before_anything_starts(
    catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "any", "criteria": "papers", "retries": 0}
    variants = {"plain": {"method.kind": "next_token"}, "judged": {"evaluation.judge": judge}}
    changes = ["--set", f"variants={json.dumps(variants)}"]
    assert cli.main(["run", "compare/tiny", "--prefect-file", "mine.yaml", *changes]) == 1
    assert "error: the judge at http://127.0.0.1:9/v1 cannot be reached" in capsys.readouterr().err
    assert not list((catalogue.parent / "home" / "artifacts").glob("*/*/manifest.json"))


def test_a_comparison_of_a_comparison_is_refused(catalogue: Path) -> None:
    with pytest.raises(ValueError, match="compare/tiny is a comparison itself\nname a run of the flow distill"):
        named("compare/tiny", str(catalogue))


def test_a_variant_that_is_called_like_a_system_of_every_run_is_refused(
    catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = '{"teacher": {}}'
    assert cli.main(["plan", "compare/tiny", "--prefect-file", "mine.yaml", "--set", f"variants={wrong}"]) == 1
    assert "a variant cannot be called teacher" in capsys.readouterr().err


def test_a_wrong_setting_of_one_cell_is_refused_with_its_name(
    catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "compare/tiny", "--prefect-file", "mine.yaml", "--set", "values=[0.5, 1.5]"]) == 1
    said = capsys.readouterr().err
    assert "ours, method.alpha=1.5, seed=0: method" in said
    assert "alpha must be in [0, 1], got 1.5" in said


def write_failing_trackers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never works, and one that does not in processes of a cell of their own."""
    (path / "trackio.py").write_text("raise RuntimeError('no answer')")
    (path / "wandb.py").write_text(
        "import multiprocessing\nfrom unittest.mock import MagicMock\n\n"
        "Settings = dict\ninit = MagicMock()\n"
        "if multiprocessing.parent_process() is not None:\n    raise RuntimeError('no answer')\n"
    )
    monkeypatch.syspath_prepend(path)
    for name in ("trackio", "wandb"):
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)  # so that what is imported meanwhile is taken back


def test_cells_side_by_side_make_the_artifacts_that_cells_one_after_another_do(
    catalogue: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_failing_trackers(tmp_path, monkeypatch)
    sets = ["--set", "values=[]", "--set", "sweep=null", "--set", "seeds=[0, 1]"]
    sets += ["--set", 'settings={"method.rounds": 2, "evaluation.rounds": false}', "--threads", "1"]
    command = ["run", "compare/tiny", "--prefect-file", "mine.yaml", *sets]
    tables = []
    for number, workers in enumerate((2, 1)):
        monkeypatch.setenv("DISTILL_HOME", str(tmp_path / f"home-{number}"))
        track = ["--set", 'runtime.track=["tensorboard", "trackio", "wandb"]'] if workers == 2 else []
        assert cli.main([*command, *track, "--set", f"workers={workers}"]) == 0, capfd.readouterr().err
        said, err = capfd.readouterr()
        if workers == 2:
            assert (said + err).count("trackio fails") == 1  # for the first cell, and so for all
            assert 1 <= err.count("wandb fails") <= workers  # once a process, not for each of three cells
        (path,) = (tmp_path / f"home-{number}" / "artifacts" / "compare").glob("*/comparison.parquet")
        tables.append(path.read_bytes())
        assert "no difference among" in said  # 40 resamples cannot tell so many apart, and the run says so
    assert tables[0] == tables[1]
    tracked = {path.parent.name for path in (tmp_path / "home-0" / "track" / "tensorboard").glob("*/*/dagger_train*")}
    assert {name.rpartition("-")[2] for name in tracked} == {"seed=0", "seed=1"}
