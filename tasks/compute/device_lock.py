"""One run on a device, or on some in a row: locks that every run on this machine sees, whatever its store, its user or
who started it.

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
from contextlib import ExitStack, contextmanager, suppress
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


def devices_here(wanted: str, together: int = 1) -> list[Device]:
    """The devices that `runtime.device` allows, in the order in which they are tried; none where it is a CPU.

    together: how many in a row a run takes, the first of which the setting may name.
    """
    import torch  # only here: to take a lock is quick

    kind, _, number = wanted.partition(":")
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        there = range(torch.cuda.device_count())
        first = [each for each in there if number in ("", str(each))]
        numbers = there[first[0] : first[0] + together] if number and first else first
        return [Device(f"cuda:{each}", str(torch.cuda.get_device_properties(each).uuid)) for each in numbers]
    if kind in ("auto", "mps") and torch.backends.mps.is_available():
        return [Device("mps", "mps")]
    return []


@contextmanager
def own_devices(found: Sequence[Device], say: Callable[[str], None], together: int = 1) -> Iterator[Sequence[Device]]:
    """Hold the first `together` in a row of these devices that no other run has; none where there are none, on a CPU.

    Waits where there are not as many, with none of them held, and says so. Raises ValueError where one cannot be
    locked.
    """
    if not found:
        yield ()
        return
    devices, held = _first_free([found[i : i + together] for i in range(len(found) - together + 1)], say)
    with held:
        yield devices


def _first_free(rows: Sequence[Sequence[Device]], say: Callable[[str], None]) -> tuple[Sequence[Device], ExitStack]:
    """Devices, and their directories: the locks are ours until these are closed."""
    said = False
    while True:
        busy: dict[Device, None] = {}
        for devices in rows:
            held = _take_all(devices)
            if isinstance(held, ExitStack):
                if said:
                    say(f"{', '.join(each.name for each in devices)} {'are' if devices[1:] else 'is'} free; going on")
                return devices, held
            busy[held] = None
        if not said:
            told = ", ".join(f"{each.name} ({_holder(_path(each))})" for each in busy)
            say(f"other runs compute on {told}; waiting")
            said = True
        time.sleep(POLL_SECONDS)


def _take_all(devices: Sequence[Device]) -> ExitStack | Device:
    """What lets go of all of them again; or the first that another process has, with none of them taken."""
    with ExitStack() as held:
        for device in devices:
            descriptor = _take(_path(device))
            if descriptor is None:
                return device
            held.callback(os.close, descriptor)
        return held.pop_all()


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
