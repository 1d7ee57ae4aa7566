"""A store is shared with a process that sees its files, respects its locks and sees its renames whole; else refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.engine import probe
from tasks.engine.probe import CONTENTS, code_digest, laid_out, look, replaceable, torn, unseen

PROJECT = Path(__file__).parents[3]


def looked_at_by_another_process(folder: Path) -> str:
    program = (
        "import sys; from pathlib import Path; from tasks.engine.probe import look; print(look(Path(sys.argv[1]), '0'))"
    )
    command = [sys.executable, "-c", program, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_a_folder_on_this_disk_can_be_shared_with_another_process(tmp_path: Path) -> None:
    with laid_out(tmp_path) as folder:
        replaceable(folder, ["0"])
        seen: list[str | None] = []
        reader = threading.Thread(target=lambda: seen.extend(torn(folder, ["0"]) for _ in range(2000)))
        reader.start()
        assert looked_at_by_another_process(folder) == "None"
        reader.join()
        assert set(seen) == {None}
        assert unseen(folder, ["0"]) is None
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_or_is_another_folder_is_named(tmp_path: Path) -> None:
    with laid_out(tmp_path) as folder:
        assert look(tmp_path / "elsewhere" / folder.name, "0") == "does not see it"
        (folder / "here").write_text("another")
        assert look(folder, "0") == "has another folder there"


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """Another view of `tmp_path`/store: what is in it is seen, but not its locks, nor what is written through it."""
    for name in ("store", "upper", "work", "view"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/store,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(tmp_path / "view")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no overlay can be mounted here")
    yield tmp_path / "view"
    subprocess.run(["umount", str(tmp_path / "view")], check=True)


def test_a_file_system_on_which_locks_do_not_hold_is_refused(tmp_path: Path, overlay: Path) -> None:
    with laid_out(tmp_path / "store") as folder:
        said = looked_at_by_another_process(overlay / folder.name)
    assert said == "can take a lock that another process holds: flock does not hold"


def test_a_copy_is_refused(tmp_path: Path) -> None:
    with laid_out(tmp_path) as folder:
        shutil.copytree(folder, tmp_path / "copy" / folder.name)
        assert "flock does not hold" in str(look(tmp_path / "copy" / folder.name, "0"))


@pytest.mark.parametrize("content", [CONTENTS[0][:100], "", None])
def test_a_file_that_is_seen_half_or_not_at_all_is_told(tmp_path: Path, content: str | None) -> None:
    replaceable(tmp_path, ["0", "1"])
    assert torn(tmp_path, ["0", "1"]) is None
    if content is None:
        (tmp_path / "value-1").unlink()
    else:
        (tmp_path / "value-1").write_text(content)
    assert torn(tmp_path, ["0", "1"]) == "1"


def test_a_rename_that_is_not_seen_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SEEN_SECONDS", 0.2)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "inside").write_text("0")
    assert unseen(tmp_path, ["0"]) is None
    assert unseen(tmp_path, ["0", "1"]) == "1"


def test_a_change_of_our_code_is_a_change_of_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("flows", "tasks", "kd_core", "data"):
        (tmp_path / package).mkdir()
    module = tmp_path / "tasks" / "module.py"
    module.write_text("a = 1\n")
    here = code_digest()
    monkeypatch.setattr(probe, "PROJECT", tmp_path)
    before = code_digest()
    module.write_text("a = 2\n")
    assert len({here, before, code_digest()}) == 3
