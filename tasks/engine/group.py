"""Processes that compute together: a process group of torch.distributed, which meets at its first process.

meeting = met_at(host)                                      # in the first process
yield from in_group(work, runtime, seat, host, meeting)     # in all of them
"""

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from tasks.engine.settings import RuntimeSettings
from tasks.messages import first_line

COMES = timedelta(minutes=10)  # within which all must have come: they import torch first, from a cold disk perhaps
ANSWERS = timedelta(hours=2)  # within which a rank answers: the first may write or judge alone. A death is seen at once
ADDRESS_OF = 0x8915  # SIOCGIFADDR of Linux
T = TypeVar("T")


@dataclass(frozen=True)
class Seat:
    """One process of a group: its rank, of how many, and where they meet."""

    rank: int = 0
    size: int = 1
    address: tuple[str, int] = ("", 0)
    backend: str = "gloo"


Work = Callable[[RuntimeSettings, Seat], Iterator[T]]  # what every rank runs; it yields what it tells


class PeerLostError(RuntimeError):
    """Another rank does not answer: it is dead, or about to be found so."""


class WorkerDiedError(ChildProcessError):
    """One of those that compute together has died; the others were ended."""


def met_at(host: str) -> Any:
    """A store at which a group meets, on a free port of this process."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=COMES)


def in_group(work: Work[T], runtime: RuntimeSettings, seat: Seat, host: str, meeting: Any = None) -> Iterator[T]:
    """What the work yields, while this process, on `host`, is in its place of a group.

    `meeting`: the store at which it meets, in the first. Raises what the work raises, and PeerLostError; the group is
    not left then, which the others would take for a death.
    """
    if seat.size == 1:
        yield from work(runtime, seat)
        return
    from torch import distributed

    if (name := interface_of(host)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)  # else the host's name, which may be 127.0.1.1 everywhere
    try:
        store = meeting or distributed.TCPStore(*seat.address, is_master=False, timeout=COMES)  # type: ignore[attr-defined]
        distributed.init_process_group(seat.backend, store=store, rank=seat.rank, world_size=seat.size, timeout=ANSWERS)
        yield from work(runtime, seat)
        distributed.barrier()  # who leaves before the others would seem dead to them
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise PeerLostError(first_line(error)) from error
        raise
    distributed.destroy_process_group()


def interface_of(host: str) -> str | None:
    """The network interface that has an address, or None where that cannot be told."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                found = fcntl.ioctl(asking.fileno(), ADDRESS_OF, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == host:
                    return name
    return None
