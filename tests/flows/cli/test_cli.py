"""The command line: instant, and one clear line for every mistake."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from flows.cli import commands
from flows.cli import main as cli
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Store
from tasks.store.runs import RunRecord, StageRun

HEAVY = {"torch", "transformers", "prefect", "pydantic", "duckdb", "pyarrow", "rich", "yaml", "matplotlib", "numpy"}


def test_importing_the_cli_loads_nothing_heavy() -> None:
    program = "import sys, flows.cli.main; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY & set(loaded) == set()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def command(_: object) -> int:
        raise error

    monkeypatch.setitem(commands.COMMANDS, "run", command)


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (ValueError("alpha must be in [0, 1], got 1.5"), ["error: alpha must be in [0, 1], got 1.5"]),
        (ValueError("no column x\n  name one of: a, b\n"), ["error: no column x", "name one of: a, b"]),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), ["error: no such file or directory: a.csv"]),
        (
            OSError("the hub cannot be reached\ngive a local copy"),
            ["error: the hub cannot be reached", "give a local copy"],
        ),
        (ValueError(), ["error: ValueError"]),
    ],
)
def test_a_users_mistake_is_one_line_and_what_to_do(
    error: Exception, lines: list[str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, error)
    assert cli.main(["run", "it"]) == 1
    assert capsys.readouterr().err.splitlines() == lines
    assert "Traceback" in (home / "logs" / "distill.log").read_text()


def test_an_unexpected_error_names_the_log_that_has_its_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, KeyError("weights"))
    assert cli.main(["run", "it"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: KeyError: 'weights'",
        f"this should not happen; the traceback is in {home / 'logs' / 'distill.log'}",
    ]
    assert "in command" in (home / "logs" / "distill.log").read_text()


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(["run", "it"]) == 130
    assert "distill resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("root", "wrong"),
    [("~nobody-of-this-name/x", "DISTILL_HOME begins with ~"), ("what?", "must not hold a question mark")],
)
def test_a_home_that_cannot_be_is_refused_and_leaves_nothing_behind(
    root: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_HOME", root)
    assert cli.main(["status"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert wrong in said[0]
    assert len(said) == 2
    assert list(tmp_path.glob("~*")) == []


def test_the_log_of_a_mistake_goes_to_the_home_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A `~` that no shell has seen: in a .env file, or in quotes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("DISTILL_HOME", "~/results")
    assert cli.main(["report"]) == 1
    assert (tmp_path / "me" / "results" / "logs" / "distill.log").exists()
    assert not (tmp_path / "~").exists()


LOAD_A_MODEL = (
    "import flows.cli.commands as c; c.COMMANDS['ls'] = lambda _: print(__import__('kd_core.models.t5')) or 0; "
)


def test_python_without_docstrings_is_started_over_or_said_to_be_too_little() -> None:
    """transformers reads docstrings while it is imported, and stops at the first that is missing."""
    program = LOAD_A_MODEL + "import flows.cli.main, sys; sys.exit(flows.cli.main.main())"
    for options, value, code, said in (
        ([], "2", 0, ""),
        (["-O"], "", 0, ""),
        (
            ["-OO"],
            "2",
            1,
            "error: transformers cannot be imported without docstrings\nrun it without -OO; -O is fine\n",
        ),
    ):
        environment = os.environ | {"PYTHONOPTIMIZE": value, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, *options, "-c", program, "ls"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (code, said)


NO_DAYS = [["gc", f"--days={days}"] for days in ("nan", "inf", "-1", "1e300", "x")]


@pytest.mark.parametrize(
    "arguments", [[], ["rnu"], ["run"], ["run", "it", "--seed", "x"], ["up", "--port", "0"], *NO_DAYS]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: distill")


@pytest.mark.parametrize("name", sorted(commands.COMMANDS))
def test_every_command_has_help_that_fits_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_broken_pipe_is_quiet(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli.main", "ls"],
        env=os.environ | {"DISTILL_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # the reader is gone before the first line
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 1


def test_ls_shows_the_catalogue_and_what_each_run_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls"]) == 0
    printed = capsys.readouterr().out
    for name in ("llmr-chitchat", "llmr-cnndm", "llmr-dailydialog", "llmr-opensubtitles"):
        assert f"\n{name}\n" in printed
    assert "Hugging Face hub, GPU" in printed


def test_a_run_is_done_once_a_later_version_has_resumed_it() -> None:
    started, resumed, other = (
        RunRecord.start("mine", parameters)
        for parameters in ({"method": {"steps": 3}}, {"method": {"steps": 3}, "lengths": {}}, {"method": {"steps": 4}})
    )
    started.end("failed")
    for later, left in ((other, True), (resumed, False)):
        later.end("completed")
        assert commands._is_done(started, [started, later]) is not left


def test_what_is_for_ray_alone_is_not_gone_on_with_in_one_process() -> None:
    recorded = asdict(RuntimeSettings(engine="ray", workers=2, address="auto", gpus_per_worker=1.0, sharded="both"))
    kept = commands._without_ray({"runtime": recorded, "seed": 0})
    assert kept["seed"] == 0
    assert RuntimeSettings(**(kept["runtime"] | {"engine": "local"})) == RuntimeSettings()


def test_unknown_runs_and_settings_name_the_nearest(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert cli.main(["run", "llmr-chitcat"]) == 1
    assert "did you mean llmr-chitchat?" in capsys.readouterr().err
    assert cli.main(["plan", "llmr-chitchat", "--set", "method.reward.valu=max"]) == 1
    assert "did you mean method.reward.value?" in capsys.readouterr().err
    assert cli.main(["plan", "llmr-chitchat", "--set", "method.sampling.temperature=0"]) == 1
    assert capsys.readouterr().err.startswith("error: method")


def test_a_crashed_run_tells_the_time_of_what_it_has_finished_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path))
    store = Store(tmp_path)
    for name, outcome in (("first", "hit"), ("second", "built")):
        record = RunRecord.start(name, {})
        record.pid, record.process_started = 0, ""
        record.stages.append(StageRun("words", "0" * 64, outcome, 0.01 if outcome == "hit" else 70.0))
        record.save(store)
    assert cli.main(["status"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "crashed" in line]
    assert [row[-1] for row in rows if row[0].startswith("first")] == ["–"]
    assert [" ".join(row[-5:]) for row in rows if row[0].startswith("second")] == ["≥ 1 min 10 s"]


def test_a_query_that_is_not_there_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sql", " "]) == 1
    assert capsys.readouterr().err.splitlines() == ["error: there is no query", 'for instance: distill sql "from runs"']
