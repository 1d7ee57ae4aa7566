"""`distill status`: which runs there are, how they ended, and the stages of one."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING

from flows.output import show
from flows.settings import nearest
from tasks.formatting import DASH

if TYPE_CHECKING:
    from tasks.store.artifacts import Store
    from tasks.store.runs import RunRecord

UNFINISHED = ("failed", "crashed")


def show_status(store: Store, wanted: str | None) -> int:
    """Print every run, or the stages of the one that is wanted; the exit code is 1 where none can be read."""
    from tasks.store.runs import scan_runs

    records, unreadable = scan_runs(store)
    print(*unreadable, sep="\n", end="\n" if unreadable else "", file=sys.stderr)
    if wanted is not None:
        _show_run(find_run(records, wanted))
        return 0
    rows = [[each.run_id, each.status, _stages(each), _duration(each)] for each in records]
    if not rows:
        print("no run can be read" if unreadable else "no runs yet; start one with: distill run llmr-chitchat")
        return 1 if unreadable else 0
    show.table(["run", "state", "stages", "time"], rows)
    if records[-1].status in UNFINISHED:
        print("go on with the last one: distill resume")
    return 0


def find_run(records: list[RunRecord], wanted: str) -> RunRecord:
    """The run with this id, or the last one of this name; ValueError with the nearest if there is none."""
    matching = [each for each in records if wanted in (each.run_id, each.name)]
    if matching:
        return matching[-1]
    known = [each.run_id for each in reversed(records)]
    raise ValueError(f"there is no run {wanted}{nearest(wanted, known)}\n`distill status` lists the runs")


def _show_run(record: RunRecord) -> None:
    facts = [("run", record.run_id), ("state", record.status), ("started", record.started), ("time", _duration(record))]
    show.labelled(facts + ([("error", record.error)] if record.error else []))
    print()
    rows = [[each.name, each.outcome, show.seconds(each.seconds), each.key[:12], each.why] for each in record.stages]
    show.table(["stage", "outcome", "time", "key", "why"], rows)


def _stages(record: RunRecord) -> str:
    """`6: 4 built, 2 hit`."""
    counts = {outcome: sum(each.outcome == outcome for each in record.stages) for outcome in ("built", "waited", "hit")}
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) or "none"


def _duration(record: RunRecord) -> str:
    """How long a run took, or has been going; of a crashed one only what its finished stages tell, if any does."""
    if record.status == "crashed":
        known = sum(each.seconds for each in record.stages if each.outcome != "hit")
        return f"≥ {show.seconds(known)}" if known else DASH
    end = datetime.fromisoformat(record.finished) if record.finished else datetime.now().astimezone()
    return show.seconds((end - datetime.fromisoformat(record.started)).total_seconds())
