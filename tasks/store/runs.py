"""The record of every run: what was asked for, which artifacts answered, and how it ended. One JSON file each.

<root>/runs/<run id>.json          a run
<root>/runs/.parts/<run id>/       what its other processes have used so far; gone when it has ended
<root>/.locks/run-<run id>.lock    held while it goes on: the kernel lets go of it, on whatever machine, when it dies
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.store.artifacts import Store
from tasks.store.files import known_fields, read_json, write_json

DISTILL = "flows/distill.py:distill"


@dataclass(frozen=True)
class StageRun:
    """One stage of one run. `outcome` is hit, built or waited (another process built it meanwhile)."""

    stage: str
    key: str
    outcome: str
    seconds: float
    why: str = ""  # of a build: what differed from what there was
    label: str = ""  # which of several stages of this kind: the round, the system; empty where there is only one
    cell: str = ""  # which run of a comparison it served; empty outside of one

    @property
    def name(self) -> str:
        """`llmr`, or `dagger_train[2]`."""
        return f"{self.stage}[{self.label}]" if self.label else self.stage


@dataclass
class RunRecord:
    """A run as runs/<run id>.json holds it."""

    run_id: str
    name: str
    parameters: dict[str, Any]
    flow: str = DISTILL  # the entrypoint whose parameters these are
    dataset: dict[str, Any] | None = None  # of a comparison: that of its cells
    state: str = "running"  # running, completed, failed; a running one whose process is gone reads as crashed
    started: str = ""  # UTC, ISO 8601
    finished: str | None = None
    error: str | None = None
    pid: int = 0
    process_started: str = ""  # tells a process from a later one with the same number
    stages: list[StageRun] = field(default_factory=list)
    part_of: str = ""  # the run whose work this process does, where it is not its own
    held: bool | None = field(default=None, compare=False)  # whether a process holds its lock; None if not known

    @classmethod
    def start(cls, name: str, parameters: dict[str, Any], flow: str = DISTILL) -> "RunRecord":
        """A record for a run that begins now, in this process."""
        now = datetime.now(UTC)
        run_id = f"{name.replace('/', '-')}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        pid = os.getpid()
        return cls(run_id, name, parameters, flow, started=utc_now(), pid=pid, process_started=process_start(pid))

    def save(self, store: Store) -> None:
        """Write the record as it stands."""
        folder = store.root / "runs"
        if self.part_of:
            folder = folder / ".parts" / self.part_of
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{self.run_id}.json", self.as_recorded())

    def as_recorded(self) -> dict[str, Any]:
        """The record as JSON holds it."""
        record = asdict(self)
        del record["held"]
        return record

    def end(self, state: str, error: str | None = None) -> None:
        """The run has ended, now."""
        self.state, self.error, self.finished = state, error, utc_now()

    @contextmanager
    def going_on(self, store: Store) -> Iterator[None]:
        """Hold the run's lock, by which other processes see that it is alive."""
        path = _lock_path(store, self.run_id)
        with path.open("w", encoding="utf-8") as file:
            with suppress(OSError):  # a file system without locks: its process is looked for
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    @property
    def status(self) -> str:
        """The state, with a run that died without a word told apart from one that goes on."""
        if self.state == "running" and not self._is_alive():
            return "crashed"
        return self.state

    def _is_alive(self) -> bool:
        if self.held is not None:
            return self.held
        return bool(self.process_started) and process_start(self.pid) == self.process_started


def read_runs(store: Store) -> list[RunRecord]:
    """All records that can be read, oldest first."""
    return scan_runs(store)[0]


def scan_runs(store: Store) -> tuple[list[RunRecord], list[str]]:
    """All records, oldest first; and of each file that cannot be read or is not what was written, its path and why."""
    return _scan(store, store.root / "runs")


def parts_of(store: Store, run_id: str) -> tuple[list[RunRecord], list[str]]:
    """The records of other processes that work for a run, returned as `scan_runs` does."""
    return _scan(store, store.root / "runs" / ".parts" / run_id)


def end_parts(store: Store, run_id: str) -> None:
    """Delete the records of a run's other processes: its own has everything now."""
    shutil.rmtree(store.root / "runs" / ".parts" / run_id, ignore_errors=True)


def _scan(store: Store, folder: Path) -> tuple[list[RunRecord], list[str]]:
    records, unreadable = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            record = _read(path)
        except FileNotFoundError:  # it has just gone
            continue
        except OSError as error:
            unreadable.append(f"{path} cannot be read: {error.strerror}")
        except (ValueError, KeyError, TypeError) as error:
            unreadable.append(f"{path} is damaged: {error}")
        else:
            record.held = _is_held(_lock_path(store, record.run_id))
            records.append(record)
    return sorted(records, key=lambda record: (record.started, record.run_id)), unreadable


def _read(path: Path) -> RunRecord:
    content = read_json(path)
    stages = [StageRun(**known_fields(StageRun, stage)) for stage in content.pop("stages")]
    record = RunRecord(stages=stages, **known_fields(RunRecord, content))
    for moment in (record.started, record.finished):
        if moment is not None:
            utc_time(moment)
    return record


def _lock_path(store: Store, run_id: str) -> Path:
    return store.root / ".locks" / f"run-{run_id}.lock"


def _is_held(lock: Path) -> bool | None:
    try:
        with lock.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return None


def utc_now() -> str:
    """This moment in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def utc_time(text: str) -> datetime:
    """A moment as `utc_now` writes it. Raises ValueError for anything else."""
    return datetime.fromisoformat(text)


def process_start(pid: int) -> str:
    """When a process began, in the system's own count; empty if there is no such process."""
    try:
        # after the command's closing bracket, which may itself hold spaces: field 22 of the line, 20th from there
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]  # dead, but its parent has not asked how it ended
    except (OSError, IndexError):
        return _process_start_elsewhere(pid)


def _process_start_elsewhere(pid: int) -> str:
    """Where there is no /proc: only whether such a process is there at all."""
    if Path("/proc/self").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # it is there, and somebody else's
        pass
    return "alive"
