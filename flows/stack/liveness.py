"""Whether the process of a flow run is alive, by labels with which the run says which process it is."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.store.runs import process_start

ATTEMPT, MACHINE, PROCESS = "distill.attempt", "distill.machine", "distill.process"


def labels(attempt: int) -> dict[str, Any]:
    """A flow run's labels in its `attempt`: the machine and the process. Empty where they cannot be known."""
    pid = os.getpid()
    start, here = process_start(pid), machine()
    return {ATTEMPT: attempt, MACHINE: here, PROCESS: f"{pid} {start}"} if start and here else {}


def alive(labels: Mapping[str, Any], attempt: int) -> bool | None:
    """Whether the process of this attempt runs, by the labels of its run; None where this machine cannot know."""
    here, (pid, _, start) = machine(), str(labels.get(PROCESS, "")).partition(" ")
    if not here or labels.get(MACHINE) != here or labels.get(ATTEMPT) != attempt or not pid.isdigit():
        return None
    found = process_start(int(pid))
    if found:
        return found == start
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, in a system that hides those from /proc
        return None
    return False  # a zombie: it is there, and no longer runs


def machine() -> str:
    """An id of this machine's process table: boot and PID namespace. Empty where /proc shows another namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        if Path("/proc/self").readlink().name != str(os.getpid()):
            return ""
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()
