"""A run that died is told from one that goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.store import maintenance
from tasks.store.artifacts import MANIFEST, Store
from tasks.store.files import read_json, write_json
from tasks.store.runs import RunRecord, process_start, scan_runs
from tests.tasks.store.tiny_stages import run_all


def test_this_process_is_there_and_always_says_the_same() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid()) != ""
    assert RunRecord.start("x", {}).status == "running"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_process_is_gone_even_before_its_parent_asks() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record = RunRecord("x-1", "x", {}, pid=child.pid, process_started=process_start(child.pid))
    assert record.status == "running"
    child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 50
    while record.status == "running" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert record.status == "crashed"  # and nobody has waited for it: it is a zombie
    assert child.wait() == -signal.SIGKILL


def test_a_later_versions_records_are_read_for_what_is_known_of_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_all(store)
    artifact = next(store.artifacts())
    for path in (artifact.path / MANIFEST, next((store.root / "runs").glob("*.json"))):
        record = read_json(path)
        for each in record.get("stages", [*record.get("files", {}).values()]):
            each["of_later"] = 1
        write_json(path, record | {"of_later": {"anything": None}})
    assert list(maintenance.verify(store)) == []
    assert artifact.path.is_dir()
    records, unreadable = scan_runs(store)
    assert (len(records), unreadable) == (1, [])
    assert artifact.key in {each.key for each in records[0].stages}


def test_a_later_process_with_the_same_number_is_another() -> None:
    record = RunRecord("x-1", "x", {}, pid=os.getpid(), process_started="1")
    assert record.status == "crashed"
