"""What a run ends with: tables at 80 columns, plain where there is no terminal."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.output import show, summary

METRICS = [
    # system, split, metric, value, low, high, n, unit, note
    ("teacher", "test", "BLEU-2", 2.84, 2.6, 3.1, 1000, "", None),
    ("seqkd", "test", "BLEU-2", 2.75, 2.51, 2.99, 1000, "", None),
    ("llmr", "test", "BLEU-2", 3.114, 2.9, 3.3, 1000, "", None),
    ("teacher", "test", "reward", -1.234, -2.0, -0.01, 1000, "nats/token", None),
    ("seqkd", "test", "reward", None, None, None, 0, "nats/token", "no output was finished"),
    ("llmr", "test", "reward", -0.5, None, None, 1000, "nats/token", None),
]
DIFFERENCES = [
    ("llmr", "seqkd", "BLEU-2", 0.364, 0.1, 0.6, 1000, ""),
    ("llmr", "teacher", "BLEU-2", 0.27, -0.1, 0.6, 1000, ""),
]
LONG = "a reply that goes on and on, past the end of the line that a terminal has, and needs to be wrapped somewhere"


def write(path: Path, columns: str, rows: list[tuple[Any, ...]]) -> None:
    names = columns.split()
    pq.write_table(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]), path)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    write(tmp_path / "metrics.parquet", "system split metric value low high n unit note", METRICS)
    write(tmp_path / "differences.parquet", "system baseline metric value low high n unit", DIFFERENCES)
    rows = [
        (number, system, f"hello {number}", "hi", LONG if system == "llmr" else "ok", 3, False)
        for number in range(10)
        for system in ("teacher", "seqkd", "llmr")
    ]
    write(tmp_path / "predictions.parquet", "id system source reference prediction num_tokens truncated", rows)
    return tmp_path


def test_the_comparison_names_its_split_and_has_its_intervals(evaluation: Path) -> None:
    grid = summary.comparison(evaluation)
    assert grid.headers == ["test split", "teacher", "SeqKD", "LLMR"]
    assert grid.rows == [
        ["BLEU-2", "2.84 [2.60, 3.10]", "2.75 [2.51, 2.99]", "3.11 [2.90, 3.30]"],
        ["reward (nats/token)", "-1.23 [-2.00, -0.01]", "–", "-0.50"],
    ]
    assert grid.notes == ["reward, SeqKD: no output was finished"]


def test_a_difference_is_starred_only_where_its_interval_excludes_0(evaluation: Path) -> None:
    grid = summary.differences(evaluation)
    assert grid.headers == ["difference", "LLMR − SeqKD", "LLMR − teacher"]
    assert grid.rows == [["BLEU-2", "+0.364 [+0.100, +0.600]*", "+0.270 [-0.100, +0.600]"]]


def test_the_printed_end_of_a_run_fits_80_columns_and_names_three_commands(
    evaluation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary.show_results("tiny", "tiny-1", evaluation, Path("outputs"))
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("distill ")] == ["sql", "export", "run"]
    assert "\x1b" not in printed
    assert printed.count("context ") == summary.NUM_SAMPLES
    assert LONG in " ".join(printed.split())


def test_tables_are_plain_aligned_columns_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(["name", "size", "done"], [["a", 1.5, True], ["long name", 20000.0, None]])
    assert capsys.readouterr().out.splitlines() == [
        "name         size  done",
        "a             1.5  yes",
        "long name  20,000  –",
    ]


def test_tables_on_a_terminal_wrap_and_show_markup_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    show.table(["what", "text"], [["[red]", LONG]])
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(len(line) for line in lines) <= 40
    assert "[red]" in " ".join(lines)


def test_an_answer_is_csv_or_json_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    rows = pa.table({"name": ["a, b", None], "value": [1.5, 2.0]})
    show.answer(rows, "csv")
    assert capsys.readouterr().out == 'name,value\n"a, b",1.5\n,2.0\n'
    show.answer(rows, "json")
    assert json.loads(capsys.readouterr().out) == [{"name": "a, b", "value": 1.5}, {"name": None, "value": 2.0}]


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_columns_of_one_name_are_all_shown(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    show.answer(pa.table([[11], [22], [33], [44]], names=["a", "a", "a_1", "a"]), form)
    shown = capsys.readouterr().out
    assert [shown.count(text) for text in ("11", "22", "33", "44")] == [1, 1, 1, 1]
    if form == "csv":
        assert shown.startswith("a,a_1,a_1_1,a_2\n")


def test_what_to_try_next_can_be_typed_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".venv" / "bin" / "distill"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(path), "run", "x"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert show.program() == ".venv/bin/distill"
    monkeypatch.chdir(tmp_path / ".venv")
    assert show.program() == "bin/distill"
    monkeypatch.chdir("/")
    assert show.program() == str(path).removeprefix("/")
    monkeypatch.setenv("PATH", str(path.parent))
    assert show.program() == "distill"
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.argv", ["/somewhere/pytest"])
    assert show.program() == "distill"
