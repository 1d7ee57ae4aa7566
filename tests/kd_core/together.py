"""Several processes that form a group, for tests of what they do together. See `together`."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, multiprocessing

if TYPE_CHECKING:
    from collections.abc import Callable


def together(function: Callable[..., Any], size: int, folder: Path, *arguments: Any) -> list[Any]:
    """What `function` returns in each of `size` processes that are gloo's default group, one thread each.

    `function` is at the top of a module. Raises whatever ends one of them.
    """
    multiprocessing.spawn(_process, (function, size, folder, arguments), nprocs=size)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]


def _process(rank: int, function: Callable[..., Any], size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    found = function(*arguments)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    distributed.destroy_process_group()
    sys.stdout.flush()
