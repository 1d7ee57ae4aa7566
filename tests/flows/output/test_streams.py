"""No run ends for what it says: streams that cannot show it, are closed, or whose reader has gone."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from flows.output import show, streams

PROJECT = Path(__file__).parents[3]
DISTILL = [sys.executable, "-m", "flows.cli.main"]


class NobodyReads(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def stream(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.BytesIO:
    """Standard output that takes only this encoding, made secure."""
    below = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(below, encoding=encoding, write_through=True))
    streams.secure()
    return below


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("ascii", "0.5 – α → x … ≥ 1", b"0.5 - \\u03b1 -> x ... >= 1"),
        ("latin-1", "é – 中", b"\xe9 - \\u4e2d"),
        ("utf-8", "é – 中", "é – 中".encode()),
        ("utf-8", "a path \udcff", b"a path \\udcff"),
    ],
)
def test_what_an_encoding_lacks_is_shown_by_what_looks_like_it(
    encoding: str, text: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = stream(monkeypatch, encoding)
    print(text, end="")
    assert below.getvalue() == shown


@pytest.mark.parametrize(("form", "shown"), [("csv", "a\n–中\n"), ("json", '[\n {\n  "a": "–中"\n }\n]\n')])
def test_output_for_programs_is_utf8_in_every_locale(form: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    below = stream(monkeypatch, "latin-1")
    show.answer(pa.table({"a": ["–中"]}), form)
    assert below.getvalue().decode("utf-8") == shown


def test_a_run_that_cannot_write_down_what_it_says_ends_well(tmp_path: Path) -> None:
    """The whole tiny run, its streams in Latin-1; and no file of ours is read or written in the locale's encoding."""
    done = subprocess.run(
        [*DISTILL, "run", "tiny", "--prefect-file", "tests/e2e/prefect.yaml"],
        cwd=PROJECT,
        env=os.environ
        | {"DISTILL_HOME": str(tmp_path), "PYTHONIOENCODING": "latin-1:strict", "PYTHONWARNDEFAULTENCODING": "1"},
        capture_output=True,
        encoding="latin-1",
    )
    assert done.returncode == 0, done.stderr
    assert "\n- distinct_1: every output is empty" in done.stdout  # a dash that Latin-1 lacks
    warned = re.findall(
        rf"{re.escape(str(PROJECT))}/((?:flows|tasks|kd_core|data)/\S+\.py):\d+: EncodingWarning", done.stderr
    )
    assert warned == []


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_streams_that_were_closed_before_lead_nowhere(closed: str, tmp_path: Path) -> None:
    """Without them the first file that is opened gets their number, and what is printed goes into it."""
    shell = f'exec "$0" -m flows.cli.main sql "select 1 as one" {closed}'
    environment = os.environ | {"DISTILL_HOME": str(tmp_path)}
    done = subprocess.run(["sh", "-c", shell, sys.executable], cwd=PROJECT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


def test_a_reader_that_has_gone_before_a_short_answer_is_no_error_at_exit(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*DISTILL, "status"],
        cwd=PROJECT,
        env=os.environ | {"DISTILL_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_run_outlives_the_reader_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a flow whose worker was killed: rich would end the program."""
    monkeypatch.setattr(Console, "on_broken_pipe", Console.on_broken_pipe)
    streams.outlive_readers()
    console = Console(file=NobodyReads())
    console.print("nobody reads this")
    console.print("and yet")
