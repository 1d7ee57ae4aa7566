"""Every kind of file of a store in turn is flipped, truncated and deleted; then a user goes on as if nothing were.

    python -m tests.e2e.damage FOLDER [HOW …]      every kind, every way; a line each; exit code 1 if any goes wrong

What may never happen: a number that is not the one of before, a store that is stuck, damage that nobody names.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.cli import main as cli
from tasks.store.artifacts import MANIFEST
from tasks.store.files import file_hash

RECIPES = Path(__file__).parent / "prefect.yaml"
RUN = ("tiny", "--prefect-file", str(RECIPES), "--set", "evaluation.resamples=20")
METRICS = "select distinct method, metric, value, low, high from metrics order by all"
HOWS = ("flip", "truncate", "delete")


@dataclass(frozen=True)
class Said:
    """What a command has answered."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


def distill(*arguments: str) -> Said:
    """One command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return Said(code, out.getvalue(), err.getvalue())


def kinds(home: Path) -> dict[str, Path]:
    """One file of every kind that a store holds: of each stage, of each record, of what is derived."""
    found: dict[str, Path] = {}
    for path in sorted(home.rglob("*")):
        if not path.is_file() or path.parts[len(home.parts)] in (".locks", ".damaged", "logs"):
            continue  # locks are empty but for a word, what is damaged is kept for a look
        place = path.relative_to(home).as_posix()
        kind = re.sub(r"[0-9a-f]{32}|\d{5,}|-\d{8}-\d{6}-[0-9a-f]{6}", "*", place)
        found[kind] = path  # the last one, which the last run refers to
    return found


def damage(path: Path, how: str) -> None:
    """Spoil a file, a moment after everything else was finished."""
    time.sleep(0.1)
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 2
        path.write_bytes(content)


def artifacts(home: Path) -> dict[str, str]:
    """Hash of every file of every artifact; manifests hold times and are left out."""
    return {
        path.relative_to(home).as_posix(): file_hash(path)
        for path in sorted((home / "artifacts").rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


@dataclass(frozen=True)
class Truth:
    """What a whole store says."""

    metrics: str
    files: dict[str, str]
    model: str  # hash of the exported weights


def fill(home: Path, folder: Path) -> Truth:
    """A whole store with one finished run, and what it says. `home` must be what DISTILL_HOME names."""
    done = distill("run", *RUN)
    assert done.code == 0, done.all
    return Truth(distill("sql", METRICS, "--format", "csv").out, artifacts(home), export(folder).out)


def export(folder: Path) -> Said:
    """The student's weights, as a hash, or what is said instead."""
    shutil.rmtree(folder, ignore_errors=True)
    said = distill("export", "tiny", str(folder))
    return Said(said.code, file_hash(folder / "model.safetensors"), said.err) if said.code == 0 else said


def wrong(home: Path, folder: Path, truth: Truth, path: Path, how: str, *, first: str) -> Iterator[str]:
    """Spoil one file and go on; what should not have been. `first` is the command that meets the damage."""
    place, of_artifact = path.relative_to(home), path.parts[len(home.parts)] == "artifacts"
    of_run = place.parts[0] == "runs"
    damage(path, how)
    name = place.parts[2][:8] if of_artifact else path.name
    if of_artifact:
        planned = distill("plan", *RUN)
        if planned.code or "damaged" not in planned.out:
            yield f"plan: {planned}"
    if first == "sql":
        told = distill("sql", METRICS, "--format", "csv")
        if not set(told.out.splitlines()) <= set(truth.metrics.splitlines()) or told.code not in (0, 1):
            yield f"sql first: {told}"
        asked = of_artifact and path.suffix in (".parquet", ".json") and len(place.parts) == 4  # what SQL can tell of
        if (asked or (of_run and how != "delete")) and name not in told.err:
            yield f"sql does not name it: {told}"
    if first == "export":
        told = export(folder)
        if told.code == 0 and told.out != truth.model:
            yield f"export first: another model: {told}"
        if told.code and len(told.err.splitlines()) > 2:
            yield f"export first: {told}"
    if first == "verify":
        told = distill("verify")
        if of_artifact and (told.code != 1 or name not in told.out):
            yield f"verify first: {told}"
    if of_run and how != "delete":
        for told in (distill("status"), distill("verify")):
            if name not in told.all:
                yield f"the record is not named: {told}"
        if not path.exists():
            yield "the record is gone"
        path.unlink(missing_ok=True)
    done = distill("run", *RUN)
    if done.code or "Traceback" in done.all:
        yield f"run: {done}"
    if of_artifact and first == "run" and name not in done.all:
        yield f"run does not name it: {done.out}"
    if artifacts(home) != truth.files:
        yield "the artifacts are not what they were"
    for told, expected in ((distill("sql", METRICS, "--format", "csv"), truth.metrics), (export(folder), truth.model)):
        if told.code or told.err or told.out != expected:
            yield f"afterwards: {told}"
    for told in (distill("verify"), distill("report"), distill("status")):
        if told.code or told.err:
            yield f"afterwards: {told}"


def rounds(home: Path, hows: Iterable[str]) -> list[tuple[str, Path, str, str]]:
    """Kind, file, way and first command of every round; each way meets every first command in turn."""
    firsts = ("run", "sql", "verify", "export")
    found = kinds(home)
    return [
        (kind, path, how, firsts[(number + shift) % len(firsts)])
        for number, (kind, path) in enumerate(found.items())
        for shift, how in enumerate(hows)
    ]


def main(folder: Path, hows: list[str]) -> int:
    """All of them, on one store that has to heal every time."""
    import os

    home = (folder / "home").resolve()
    os.environ["DISTILL_HOME"] = str(home)
    truth, failed = fill(home, folder / "model"), 0
    for kind, path, how, first in rounds(home, hows or HOWS):
        if not path.is_file():  # a run's own file that an earlier round took away
            continue
        begun = time.monotonic()
        problems = list(wrong(home, folder / "model", truth, path, how, first=first))
        failed += bool(problems)
        print(f"{how} {kind} ({first} first): {time.monotonic() - begun:.1f} s {problems or 'well'}", flush=True)
    print(f"{failed} went wrong")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
