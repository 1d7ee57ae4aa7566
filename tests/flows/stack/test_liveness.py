"""Whether a run's process is alive: only what this very process table says is believed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.stack import liveness
from flows.stack.liveness import ATTEMPT, MACHINE, PROCESS, alive, labels
from tasks.store.runs import process_start


def test_this_process_is_alive() -> None:
    assert alive(labels(1), 1) is True


def test_a_process_that_was_killed_is_dead_while_nobody_has_waited_for_it_too() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        of_it = labels(1) | {PROCESS: f"{process.pid} {process_start(process.pid)}"}
        assert alive(of_it, 1) is True
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is left a zombie
        assert alive(of_it, 1) is False
    assert alive(of_it, 1) is False


def test_another_process_with_the_number_is_not_the_one() -> None:
    assert alive(labels(1) | {PROCESS: f"{os.getpid()} 17"}, 1) is False


@pytest.mark.parametrize(
    "others",
    [
        {MACHINE: "another"},
        {ATTEMPT: 2},
        {PROCESS: ""},
        {PROCESS: "abc 17"},
    ],
)
def test_of_another_machine_or_attempt_nothing_is_known(others: dict[str, object]) -> None:
    assert alive(labels(1) | {PROCESS: f"{os.getpid()} 17"} | others, 1) is None


def test_of_a_run_without_labels_nothing_is_known() -> None:
    assert alive({}, 0) is None


def test_a_process_that_the_system_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    of_a_hidden_one = labels(1) | {PROCESS: "12345 17"}

    def refused(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(liveness, "process_start", lambda pid: "")
    monkeypatch.setattr(liveness.os, "kill", refused)
    assert alive(of_a_hidden_one, 1) is None


def test_where_proc_shows_another_namespace_no_run_is_labelled_or_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_this = labels(1)
    monkeypatch.setattr(liveness.os, "getpid", lambda: 1 if os.getppid() != 1 else 2)
    assert liveness.machine() == ""
    assert labels(1) == {}
    assert alive(of_this, 1) is None
