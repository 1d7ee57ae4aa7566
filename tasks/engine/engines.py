"""The engine that a run names."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.engine.local import Team
from tasks.engine.settings import RuntimeSettings


@contextmanager
def engine_of(runtime: RuntimeSettings, root: Path, warn: Callable[[str], None]) -> Iterator[Team | None]:
    """The engine that a run names, started, for a store at `root`; None for this process.

    Raises ValueError where it cannot be had.
    """
    if runtime.engine == "local":
        yield None
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would tell its makers of its use
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # of several ranks that raise, one is heard
    try:
        from tasks.engine.cluster import started
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ValueError(
            "runtime.engine ray needs Ray, which is not installed\ninstall it with: pip install 'distill-llm[ray]'"
        ) from None
    with started(runtime, root, warn) as cluster:
        yield cluster
