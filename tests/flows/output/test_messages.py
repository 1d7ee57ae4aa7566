"""Unusual input ends in one line that says what is wrong, and one that says what to do."""

import errno
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows import compare_outline as comparison
from flows.cli import main as cli
from flows.output import show
from flows.output.messages import LONGEST, explain, why_stopped
from flows.settings import validate
from tasks.compute.device import device_of
from tasks.engine.settings import RuntimeSettings
from tasks.ranges import check_numbers
from tasks.report import page
from tasks.store.artifacts import Store, StoreError

PROJECT = Path(__file__).parents[3]
RECIPES = PROJECT / "tests" / "e2e" / "prefect.yaml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(PROJECT)
    return tmp_path / "home"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_no_permission_says_what_to_do() -> None:
    first, second = explain(PermissionError(errno.EACCES, "Permission denied", "a.csv")).splitlines()
    assert first == "permission denied: a.csv"
    assert second.startswith("this user may not: give it access")


def test_a_file_system_that_nobody_may_write_to_is_not_this_users_fault() -> None:
    first, second = explain(OSError(errno.EROFS, "Read-only file system", "/mnt/a")).splitlines()
    assert first == "read-only file system: /mnt/a"
    assert second == "nobody may write there: mount it for writing, or name another place"


@pytest.mark.parametrize("below", ["", "deeper"])
@pytest.mark.parametrize("command", [["status"], ["sql", "from runs"], ["plan", "tiny"]])
def test_a_store_that_is_a_file_says_which_and_what_to_set(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    below: str,
    command: list[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "file" / below))
    assert cli.main([*command, *(["--prefect-file", str(RECIPES)] if command[0] == "plan" else [])]) == 1
    root, file = tmp_path / "file" / below, tmp_path / "file"
    assert lines(capsys) == [
        f"error: the store cannot be at {root}: {file} is no folder",
        "set DISTILL_HOME to one, or to a new name",
    ]


@pytest.mark.parametrize("setting", ["seed=true", "limit=false", "method.optimizer.learning_rate=true"])
def test_yes_and_no_are_no_numbers(capsys: pytest.CaptureFixture[str], setting: str) -> None:
    assert cli.main(["plan", "tiny", "--prefect-file", str(RECIPES), "--set", setting]) == 1
    name, _, value = setting.partition("=")
    assert lines(capsys)[0] == f"error: {name} must be a number, got {value}"


def test_yes_and_no_stay_where_they_are_asked_for() -> None:
    known = {"both": (bool | float, False), "many": (tuple[bool, ...], ())}
    assert validate(known, {"both": True, "many": [True, False]}) == {"both": True, "many": (True, False)}
    with pytest.raises(ValueError, match=r"many must be a number, got true"):
        validate({"many": (tuple[float, ...], ())}, {"many": [0.5, True]})


def test_a_line_of_any_length_is_cut() -> None:
    shown = explain(ValueError(f"no such file: {'a' * 100_000}\nname another"))
    assert len(shown.splitlines()[0]) < LONGEST + 50
    assert shown.splitlines()[0].endswith("… (100,014 characters)")
    assert shown.splitlines()[1] == "name another"
    assert len(explain(OSError(errno.ENAMETOOLONG, "File name too long", "a" * 100_000))) < LONGEST + 50


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (MemoryError("Unable to allocate 1 PiB"), "not enough memory: Unable to allocate 1 PiB\nlower"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory: DefaultCPUAll"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."), "not enough memory: CUDA out of memory"),
        (RecursionError(), "a setting or a file is nested too deep\ngive it flat"),
    ],
)
def test_what_stops_a_command_without_being_a_fault(error: Exception, begins: str) -> None:
    said = why_stopped(error)
    assert said is not None
    assert said.startswith(begins)
    assert why_stopped(KeyError("weights")) is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (f"x={'[' * 5000}{']' * 5000}", "a setting or a file is nested too deep"),
        ("dataset.path=", "no such file: the path is empty"),
        ("dataset.path=a\nb", "no such file: 'a\\nb'"),
        ("dataset.path=~nobody-of-that-name/x.csv", "no such file: ~nobody-of-that-name/x.csv"),
        ("method.optimizer.betas=[0.9]", "method.optimizer.betas: it takes more values than that, got [0.9]"),
        ('student={"name": " "}', "student: name must be a hub id or a directory, got an empty text"),
        ("limit=0", "limit must be in [1, 2147483647], got 0"),
        ("teacher.vocab_size=2147483647", "teacher.vocab_size must be in [1, 1000000], got 2147483647"),
    ],
)
def test_an_odd_setting_is_one_line(capsys: pytest.CaptureFixture[str], setting: str, said: str) -> None:
    assert cli.main(["plan", "tiny", "--prefect-file", str(RECIPES), "--set", setting]) == 1
    found = lines(capsys)
    assert found[0] == f"error: {said}"
    assert len(found) <= 2


@pytest.mark.parametrize("device", ["cuda:x", "cuda:99", "mps:9"])
def test_a_device_that_is_not_there_is_said_before_anything_starts(
    capsys: pytest.CaptureFixture[str], home: Path, device: str
) -> None:
    assert cli.main(["run", "tiny", "--prefect-file", str(RECIPES), "--device", device]) == 1
    first, second = lines(capsys)
    assert first.startswith(f"error: runtime.device {device!r} cannot be used here: ")
    assert second == "leave it at auto, or name a device that this machine has"
    assert not list((home / "artifacts").glob("*/*"))
    assert device_of(RuntimeSettings(device="cpu")).type == "cpu"


def test_graphs_without_a_cuda_device_are_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    asked = ["--device", "cpu", "--set", "runtime.cuda_graphs=true"]
    assert cli.main(["run", "tiny", "--prefect-file", str(RECIPES), *asked]) == 1
    assert lines(capsys) == [
        "error: runtime.cuda_graphs needs a CUDA device, and this run is on cpu",
        "leave it at false",
    ]
    assert not list((home / "artifacts").glob("*/*"))


def test_a_report_never_replaces_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "results_of", lambda store, run_id, ending: nullcontext())
    monkeypatch.setattr(page, "render", lambda results: "<html>")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match=r"cannot write .*pipe: it is a device or a pipe\ngive another place"):
        page.write_report(Store(tmp_path / "store"), "any", tmp_path / "pipe")
    assert page.write_report(Store(tmp_path / "store"), "any", tmp_path / "plain").read_text() == "<html>"
    assert (tmp_path / "pipe").is_fifo()


def test_a_time_that_python_cannot_show(capsys: pytest.CaptureFixture[str]) -> None:
    far = pa.table({"day": pa.array([1_825_492_972], pa.int32()).cast(pa.date32())})
    for form in ("table", "csv", "json"):
        with pytest.raises(ValueError, match=r"the answer holds a time that cannot be shown: .*\nask for it as text"):
            show.answer(far, form)


GRID: dict[str, Any] = {"run": "tiny", "catalogue": str(RECIPES)}


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"variants": {"a": {}}, "seeds": [0, 1, 0]}, "seeds must differ in what is shown of them, got 0 twice"),
        (
            {"variants": {"a": {}}, "sweep": "method.entropy_bonus", "values": [0.1234567, 0.1234568]},
            "values must differ in what is shown of them, got 0.123457 twice",
        ),
        ({"variants": {"": {}}}, "a variant needs a name that can be seen"),
        ({"variants": {"a\nb": {}}}, "a variant needs a name that can be seen"),
    ],
)
def test_cells_that_cannot_be_told_apart_are_refused(grid: dict[str, Any], said: str) -> None:
    parameters = validate(comparison.OUTLINE.parameters, GRID | grid)
    del parameters["runtime"]
    with pytest.raises(ValueError, match=r".") as caught:
        comparison.check(parameters)
    assert str(caught.value).splitlines()[0] == said


def test_the_largest_numbers_of_workers_and_words_pass() -> None:
    check_numbers("workers", 1024)
    check_numbers("teacher.vocab_size", 1_000_000)
