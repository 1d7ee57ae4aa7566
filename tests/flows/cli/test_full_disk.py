"""A full disk, as every library that writes there says it: one line that names where, and what to do."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from flows.cli import commands
from flows.cli import main as cli
from flows.output.messages import MAKE_ROOM, explain, is_explained
from tasks.store.artifacts import StoreError

VALUES = np.random.default_rng(0).random(200_000)  # 1.6 MB that no compression makes smaller


def write_duckdb(path: Path) -> None:
    """As the catalogue does, which says in a line of its own what DuckDB said in several."""
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{path}' AS results")
        connection.execute("CREATE TABLE results.t AS SELECT random() FROM range(300000)")
        try:
            connection.execute("DETACH results")
        except duckdb.Error:
            raise StoreError("results.duckdb could not be built") from None


WRITERS: dict[str, Callable[[Path], object]] = {
    "python": lambda path: path.write_bytes(VALUES.tobytes()),
    "numpy": lambda path: np.save(path.with_suffix(".npy"), VALUES),
    "safetensors": lambda path: save_file({"a": torch.from_numpy(VALUES)}, path),
    "pyarrow": lambda path: pq.write_table(pa.table({"a": VALUES}), path),
    "duckdb": write_duckdb,
}


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_one_line_and_what_to_do(library: str, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(full))
    with pytest.raises(Exception) as caught:  # noqa: PT011 (each has its own)
        WRITERS[library](full / "file")
    assert is_explained(caught.value)
    wrong, to_do = explain(caught.value).splitlines()
    assert wrong.startswith(f"no space left on device: {full}")
    assert to_do == MAKE_ROOM


def test_the_words_are_enough_where_a_library_gives_no_number() -> None:
    wrong, _ = explain(OSError('could not write "/x/a": No space left on device')).splitlines()
    assert wrong == "no space left on device: /x/a"


def test_a_used_up_quota_is_named_with_its_file() -> None:
    error = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/home/me/a.parquet")
    assert explain(error).splitlines() == ["disk quota exceeded: /home/me/a.parquet", MAKE_ROOM]


@pytest.mark.parametrize("error", [RuntimeError("no room for doubt"), KeyError("a")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_explained(error)
    assert MAKE_ROOM not in explain(error)


def test_the_command_line_says_it_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import SafetensorError

    def run(_: object) -> int:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setenv("DISTILL_HOME", str(tmp_path))
    monkeypatch.setitem(commands.COMMANDS, "run", run)
    assert cli.main(["run", "it"]) == 1
    assert capsys.readouterr().err.splitlines() == [f"error: no space left on device: {tmp_path}", MAKE_ROOM]
