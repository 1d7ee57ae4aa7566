"""How soon the command line answers: heavy imports come late. The reference is what importing them at once costs."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.common import in_turn, line


def run() -> Iterator[dict[str, Any]]:
    """Seconds of a fresh process."""
    eager = "import torch, transformers, prefect"
    for what, program in (("import flows.cli.main", "import flows.cli.main"), ("distill --help", HELP)):
        ours, reference = in_turn(lambda program=program: fresh(program), lambda: fresh(eager), repeats=5)
        yield line("import_time", ours, reference, "s", what=what, reference_is=eager)


HELP = "import sys, flows.cli.main; sys.argv = ['distill', '--help']; flows.cli.main.main()"


def fresh(program: str) -> float:
    """Run a program in a new interpreter; one that fails has no time."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return time.perf_counter() - begun
