"""Several runs at once in one store, killed (SIGKILL) at random moments, with gc in a loop beside them, for minutes.

    python -m tests.e2e.soak FOLDER MINUTES [SEED]      (make soak)

Every process is a fork of this one, which has imported everything and computed nothing. At the end every run is made
once more to its end: its artifacts must be, byte for byte, those of runs that nobody disturbed. Exit code 1 if not, or
if any process failed of something else than being killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.cli import commands  # noqa: F401 (imported before the forks)
from flows.cli import main as cli
from flows.outlines import outline_of
from tests.e2e.damage import RECIPES, artifacts

RUN = ("run", "tiny", "--prefect-file", str(RECIPES), "--set", "evaluation.resamples=20")
SHARDS = ("--set", "score.shard_rows=16", "--set", "runtime.checkpoint_seconds=0")
VARIANTS = [
    (*RUN, *SHARDS, "--seed", str(seed), *more)
    for seed in (0, 1)
    for more in ((), ("--set", "method.steps=8"), ("--set", "data_seed=1"))
]
BESIDE = [("gc", "--days", "0", "--grace", "0", "--yes")] * 3 + [("verify",), ("sql", "from metrics"), ("status",)]
LONGEST_SECONDS = 8.0  # before a run is killed


@dataclass
class Process:
    """A command in a fork."""

    arguments: Sequence[str]
    log: Path
    pid: int = 0
    killed: bool = False
    dies_at: float = field(default=float("inf"))

    def start(self, home: Path) -> Process:
        """Fork, and do it there."""
        self.pid = os.fork()
        if self.pid == 0:
            os.environ["DISTILL_HOME"] = str(home)
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
            try:
                code = cli.main(list(self.arguments))
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException as error:
                os.write(2, f"Traceback: {error!r}\n".encode())
                code = 99
            os._exit(code)
        return self

    def kill(self) -> None:
        """As a power cut does."""
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)

    def end(self, *, block: bool = False) -> int | None:
        """How it ended; None while it goes on."""
        pid, status = os.waitpid(self.pid, 0 if block else os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None


def problem(process: Process, code: int) -> str | None:
    """What is wrong with how a process ended."""
    said = process.log.read_text(encoding="utf-8", errors="replace")
    expected = (process.killed and code == -signal.SIGKILL) or code == 0
    if expected and "Traceback" not in said and "damaged" not in said.replace("damaged things", ""):
        return None
    return f"{' '.join(process.arguments)} ended with {code}:\n{said[-2000:]}"


def main(folder: Path, minutes: float, seed: int) -> int:
    """Disturb for some minutes, then compare."""
    folder.mkdir(parents=True, exist_ok=True)
    outline_of("flows/distill.py:distill")
    rng, home, log = random.Random(seed), folder / "home", folder / "log"
    log.mkdir(exist_ok=True)
    problems: list[str] = []
    for number, arguments in enumerate(VARIANTS):
        whole = Process(arguments, log / f"whole-{number}").start(folder / "undisturbed")
        problems += [each for each in [problem(whole, whole.end(block=True) or 0)] if each]
    end, running, started, kills = time.monotonic() + 60 * minutes, [], 0, 0
    beside: list[Process] = []
    while (time.monotonic() < end or running or beside) and not problems:
        now = time.monotonic()
        while len(running) < rng.choice((2, 3, 4)) and now < end:
            started += 1
            process = Process(rng.choice(VARIANTS), log / f"run-{started}").start(home)
            process.dies_at = now + rng.uniform(0, LONGEST_SECONDS) if rng.random() < 0.8 else float("inf")
            running.append(process)
        while len(beside) < 2 and now < end:  # gc beside gc, verify beside gc
            started += 1
            beside.append(Process(rng.choice(BESIDE), log / f"beside-{started}").start(home))
        for process in [*running, *beside]:
            if process.dies_at < now and not process.killed:
                process.kill()
                kills += 1
            code = process.end()
            if code is not None:
                problems += [each for each in [problem(process, code)] if each]
                (beside if process in beside else running).remove(process)
        time.sleep(0.01)
    for arguments in VARIANTS if not problems else []:
        last = Process(arguments, log / "last").start(home)
        problems += [each for each in [problem(last, last.end(block=True) or 0)] if each]
    expected, found = artifacts(folder / "undisturbed"), artifacts(home)
    if not problems and any(found.get(name) != sha256 for name, sha256 in expected.items()):
        problems.append("what came out is not what came out undisturbed")
    if not kills:
        problems.append("nothing was killed: give it more minutes")
    print(f"{started} processes, {kills} of them killed, seed {seed}: {problems or 'every artifact as it should be'}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0))
