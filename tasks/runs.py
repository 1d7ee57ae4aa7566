"""The record of every run: what was asked for, which artifacts answered, and how it ended. One JSON file each."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.store import Store, write_json

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

    @classmethod
    def start(cls, name: str, parameters: dict[str, Any], flow: str = DISTILL) -> "RunRecord":
        """A record for a run that begins now, in this process."""
        now = datetime.now(UTC)
        run_id = f"{name.replace('/', '-')}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        pid = os.getpid()
        return cls(run_id, name, parameters, flow, started=utc_now(), pid=pid, process_started=process_start(pid))

    def save(self, store: Store) -> None:
        """Write the record as it stands."""
        write_json(store.root / "runs" / f"{self.run_id}.json", asdict(self))

    @property
    def status(self) -> str:
        """The state, with a run that died without a word told apart from one that goes on."""
        if self.state == "running" and (not self.process_started or process_start(self.pid) != self.process_started):
            return "crashed"
        return self.state


def read_runs(store: Store) -> list[RunRecord]:
    """All records, oldest first. One that cannot be read is passed over: it says nothing."""
    records = []
    for path in sorted((store.root / "runs").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            stages = [StageRun(**stage) for stage in content.pop("stages")]
            records.append(RunRecord(stages=stages, **content))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(records, key=lambda record: (record.started, record.run_id))


def utc_now() -> str:
    """This moment in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def process_start(pid: int) -> str:
    """When a process began, in the system's own count; empty if there is no such process."""
    try:
        # after the command's closing bracket, which may itself hold spaces: field 22 of the line, 20th from there
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
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
