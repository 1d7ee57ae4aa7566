"""Comparisons: the run that is compared is looked up in the catalogue that named the comparison."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import compare_outline
from flows.cli import commands
from flows.cli import main as cli
from flows.compare_outline import named
from flows.settings import validate
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


def test_a_plan_of_cells_side_by_side_computes_nothing(catalogue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stages, _ = planned(["--set", "workers=2"], capsys)
    assert code == 0
    assert stages == planned([], capsys)[1]
    assert not list((catalogue.parent / "home" / "artifacts").glob("*/*/manifest.json"))


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (['variants={"a": null}'], "variants.a: input should be a valid dictionary, got None"),
        (["sweep=method..alpha"], "there is no setting 'method..alpha'\na dotted name has no empty part"),
        (['variants={"a": {".seed": 1}}'], "seed=0: there is no setting '.seed'\na dotted name has no empty part"),
    ],
)
def test_a_name_that_is_wrong_in_a_grid_is_told(
    options: list[str], said: str, catalogue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [part for option in options for part in ("--set", option)]
    assert cli.main(["plan", "compare/tiny", "--prefect-file", "mine.yaml", *sets]) == 1
    assert said in capsys.readouterr().err


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


def planned(options: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], list[str]]:
    """Exit code of a plan of the tiny comparison, what it says is computed, and what is wrong."""
    code = cli.main(["plan", "compare/tiny", "--prefect-file", "mine.yaml", *options])
    said = capsys.readouterr()
    return code, [line.split()[0] for line in said.out.splitlines()[1:]], said.err.splitlines()


def cells(options: list[str]) -> dict[str, dict[str, Any]]:
    """The parameters of each cell of the tiny comparison with what was typed, by the cell's name."""
    arguments = cli.parser().parse_args(["plan", "compare/tiny", "--prefect-file", "mine.yaml", *options])
    parameters = commands._parameters(arguments, commands._named(arguments))
    _, tasks = compare_outline._tasks(**valid(parameters))
    return {task.cell.name: task.parameters for task in tasks}


def valid(parameters: dict[str, Any]) -> dict[str, Any]:
    found = validate(compare_outline.OUTLINE.parameters, parameters)
    return {name: value for name, value in found.items() if name != "runtime"}


@pytest.mark.parametrize("form", ["method.rounds=3", "settings.method.rounds=3"])
def test_a_setting_of_the_compared_run_is_one_of_all_cells(catalogue: Path, form: str) -> None:
    whole = '{"plain": {"method": {"kind": "next_token", "rounds": 2}}, "ours": {"method.rounds": 1}, "as-it-is": {}}'
    before = cells(["--set", f"variants={whole}"])
    after = cells(["--set", f"variants={whole}", "--set", form])
    assert {each["method"].rounds for each in before.values()} != {3}
    for name, each in before.items():
        assert after[name] == each | {"method": replace(each["method"], rounds=3)}


def test_limit_and_seed_are_those_of_all_cells(catalogue: Path) -> None:
    found = cells(["--limit", "900", "--seed", "7"])
    assert {(each["limit"], each["seed"]) for each in found.values()} == {(900, 7)}
    assert all(name.endswith("seed=7") for name in found)


def test_of_two_variants_the_one_that_is_named_in_full_is_changed(catalogue: Path) -> None:
    """A name may have a dot in it."""
    given = ["--set", 'variants={"v1": {}, "v1.method": {}}']
    before, after = cells(given), cells([*given, "--set", "variants.v1.method.method.rounds=2"])
    assert {name.partition(",")[0] for name in before if before[name] != after[name]} == {"v1.method"}


def test_a_setting_inside_of_a_variant_leaves_what_is_beside_it(catalogue: Path) -> None:
    before, after = cells([]), cells(["--set", "variants.ours.method.rounds=3"])
    for name, each in before.items():
        own = each | {"method": replace(each["method"], rounds=3)}
        assert after[name] == (own if name.startswith("ours") else each)


@pytest.mark.parametrize(
    ("options", "wrong", "to_do"),
    [
        (
            ["--set", "metod.rounds=3"],
            "there is no setting metod.rounds; did you mean method?",
            "a comparison has: run,",
        ),
        (["--set", "valuse=[1]"], "there is no setting valuse; did you mean values?", "a comparison has: run,"),
        (["--set", "variants.our.seed=3"], "there is no variant our; did you mean ours?", "there are: ours, plain"),
        (["--set", "variants=3", "--limit", "9"], "variants must be settings by name, got 3", "for instance: {"),
        (["--set", 'variants={"a": null}', "--limit", "9"], "a must be settings by name, got None", "for instance: {"),
        (["--set", "run=null", "--limit", "9"], "run must be the name of a run, got None", "--set run=…"),
        (["--set", 'settings={"seed": 3}'], "settings cannot set seed", "--set 'seeds=[0]'"),
        (["--set", "variants.ours.seed=3"], "variant ours cannot set seed", "--set 'seeds=[0]'"),
        (["--set", "settings.runtime.threads=1"], "settings cannot set runtime.threads", "--set runtime.threads=…"),
        (["--set", "method.alpha=0.5"], "settings cannot set method.alpha: it is swept", "--set 'values=[…]'"),
        (["--set", "sweep=seed"], "sweep cannot set seed", "--set 'seeds=[0]'"),
        (["--set", "sweep=null"], "sweep (a setting) and values go together", "for instance: --set sweep="),
    ],
)
def test_what_no_cell_would_have_is_refused_with_what_to_type(
    catalogue: Path, options: list[str], wrong: str, to_do: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, (first, second) = planned(options, capsys)
    assert code == 1
    assert wrong in first
    assert to_do in second


def test_variants_that_are_the_same_are_said_before_anything_starts(catalogue: Path) -> None:
    same = GRID | {"variants": {"one": {}, "other": {"method.alpha": 1.0}, "third": {"method.rounds": 4}}}
    same = same | {"sweep": None, "values": [], "settings": {"method.alpha": 1.0}}
    remarks = compare_outline.check(valid(same | {"catalogue": str(catalogue)}))
    assert remarks == ["the variants one and other are the same: nothing that they set differs"]
