"""The local engine is this process: parts in order, nothing opened for none. Nobody needs Ray for it, or imports it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tasks.engine.engines import engine_of
from tasks.engine.local import Local
from tasks.engine.settings import RuntimeSettings
from tests.tasks.engine.tiny_work import squares, wrong

PROJECT = Path(__file__).parents[3]


def test_parts_are_made_in_order_by_this_process_and_told_of() -> None:
    told: list[tuple[int, int]] = []
    runtime = RuntimeSettings(threads=1)
    made = list(Local(runtime).map(squares, [3, 4], lambda number, done: told.append((number, done))))
    assert made == [(0, (9, os.getpid(), runtime)), (1, (16, os.getpid(), runtime))]
    assert told == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_what_is_made_before_a_part_fails_is_had() -> None:
    made = Local(RuntimeSettings()).map(wrong, [1, 2, 3], lambda number, done: None)
    assert next(made)[0] == 0
    with pytest.raises(ValueError, match="part 2 is wrong"):
        next(made)


def test_the_local_engine_imports_no_ray(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tasks.store.artifacts import Store\n"
        "from tests.tasks.store.test_shards import Ear, make\n"
        "print(make(Store(Path(sys.argv[1])), Ear()).path.is_dir(), [m for m in sys.modules if m.startswith('ray')])"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said == "True []\n"


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_its_engine_says_what_to_install(tmp_path: Path) -> None:
    with (
        pytest.raises(
            ValueError, match=r"needs Ray, which is not installed\ninstall it with: pip install 'distill-llm\[ray\]'"
        ),
        engine_of(RuntimeSettings(engine="ray"), tmp_path, print),
    ):
        pass
