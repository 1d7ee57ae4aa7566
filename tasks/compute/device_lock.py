"""One run on a device: a lock that every run on this machine sees, whatever its store, its user or who started it.

    /tmp/distill-<id>/     a directory for each device, held with flock: the kernel lets go of it when the process dies

`id` is the GPU's own (its UUID), not its number, which CUDA_VISIBLE_DEVICES changes. It is a directory because every
user may open and lock one, whoever made it; a file in a folder like /tmp, Linux may refuse to others. What cleans /tmp
(systemd) leaves alone what is locked. The environment variable DISTILL_LOCKS names another folder than /tmp: one that
containers share, or one of your own for runs that are to share a device on purpose.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = "/tmp"  # not $TMPDIR, which may be another one for every user
POLL_SECONDS = 1.0
AGAIN_SECONDS = 0.02  # between two looks at a directory that another process is about to make or to remove


@dataclass(frozen=True)
class Device:
    """A device that one run at a time computes on."""

    name: str  # as torch calls it in this process: cuda:1
    id: str  # as every process knows it


def devices_here(wanted: str) -> list[Device]:
    """The devices that `runtime.device` allows, in the order in which they are tried; none where it is a CPU."""
    import torch  # only here: to take a lock is quick

    kind, _, number = wanted.partition(":")
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        numbers = [each for each in range(torch.cuda.device_count()) if number in ("", str(each))]
        return [Device(f"cuda:{each}", str(torch.cuda.get_device_properties(each).uuid)) for each in numbers]
    if kind in ("auto", "mps") and torch.backends.mps.is_available():
        return [Device("mps", "mps")]
    return []


@contextmanager
def one_device(found: Sequence[Device], say: Callable[[str], None]) -> Iterator[Device | None]:
    """Hold the first of these devices that no other run has; None where there are none, on a CPU.

    Waits where all are taken, and says so. Raises ValueError where one cannot be locked.
    """
    if not found:
        yield None
        return
    device, descriptor = _first_free(found, say)
    try:
        yield device
    finally:
        os.close(descriptor)


def _first_free(found: Sequence[Device], say: Callable[[str], None]) -> tuple[Device, int]:
    """A device, and its directory: the lock is ours until that is closed."""
    said = False
    while True:
        for device in found:
            descriptor = _take(_path(device))
            if descriptor is not None:
                if said:
                    say(f"{device.name} is free; going on")
                return device, descriptor
        if not said:
            taken = ", ".join(f"{each.name} ({_holder(_path(each))})" for each in found)
            say(f"other runs compute on {taken}; waiting")
            said = True
        time.sleep(POLL_SECONDS)


def _take(path: Path) -> int | None:
    """The directory, open and locked; None where another process has the lock.

    One that this user may not open is looked at again for a second: whoever makes it opens it to all in two steps. So
    is one that was removed before it was locked: who comes later makes another, and would lock that.
    """
    deadline = time.monotonic() + POLL_SECONDS
    while True:
        try:
            descriptor = _locked(path)
            if descriptor is None or _is_at(path, descriptor):
                return descriptor
            os.close(descriptor)
        except OSError as error:
            passing = isinstance(error, PermissionError | FileNotFoundError)
            if not passing or time.monotonic() > deadline:
                raise ValueError(
                    f"the device's lock {path} cannot be taken: {(error.strerror or str(error)).lower()}\n"
                    "name a folder on a local disk in which every user may make folders: DISTILL_LOCKS=/var/lock"
                ) from None
        time.sleep(AGAIN_SECONDS)


def _locked(path: Path) -> int | None:
    """The directory of that name, made where there is none, as `_take` has it."""
    with suppress(FileExistsError):
        path.mkdir()
        path.chmod(0o755)  # whatever the umask: every user is to see the lock
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open directory is still the one of that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False


def _holder(path: Path) -> str:
    """`process 123`, from the kernel's list of locks, where it can be read."""
    with suppress(OSError):
        inode = str(path.stat().st_ino)
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode:
                return f"process {fields[4]}"
    return "another process"


def _path(device: Device) -> Path:
    return Path(os.environ.get("DISTILL_LOCKS") or FOLDER) / f"distill-{device.id}"
