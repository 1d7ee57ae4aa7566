"""The local Prefect server: where it is, whether it is healthy, and what `distill up` arranges on it.

Nothing here imports prefect before it is needed, because reading the settings already takes a second.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
POOL = "distill"


def api_url(port: int) -> str:
    """The address of the API on this machine."""
    return f"http://{HOST}:{port}/api"


def is_healthy(url: str, timeout_seconds: float = 1.0) -> bool:
    """Whether a Prefect API answers at `url`."""
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine
    try:
        with directly.open(f"{url}/health", timeout=timeout_seconds) as answer:
            return bool(answer.read() == b"true")
    except (urllib.error.URLError, OSError, ValueError):
        return False


def environment(root: Path, url: str, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of everything that talks to our server: Prefect's home is under `root`, its telemetry off.

    The user's own Prefect settings stay out (profile, key, database), all but the logging ones, so that neither
    reaches into the other.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith("PREFECT_") or name.startswith("PREFECT_LOGGING_")
    }
    exempt = ",".join(filter(None, [inherited.get("NO_PROXY") or inherited.get("no_proxy"), HOST]))
    return kept | {
        "NO_PROXY": exempt,  # or a proxy of the user's network is asked for this machine
        "no_proxy": exempt,
        "PREFECT_HOME": str(root / "prefect"),
        # Prefect's own would stop at a `?` and read `%20` as a space
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{quote(str(root / 'prefect' / 'prefect.db'))}",
        "PREFECT_API_URL": url,
        "DISTILL_HOME": str(root),
        "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",  # both, or `--watch` shows no log lines
        "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # logs and what is streamed to them, in any locale
    }


def running_stack(root: Path) -> str | None:
    """The API's address of the `distill up` that is running for `root`, or None."""
    record = root / "prefect" / "up.lock"
    with suppress(OSError, ValueError), record.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            url = str(json.load(file)["url"])
            return url if is_healthy(url) else None
    return None


def join(root: Path, url: str) -> None:
    """Make this process one of that stack's clients; call it before prefect is imported, which reads this once."""
    os.environ.update(environment(root, url))
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # the terminal shows our own progress


def arrange(url: str, project: Path) -> None:
    """Make the server ready for a worker: the work pool."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    defaults = template["variables"]["properties"]
    # The same interpreter and folder as ours, in the worker's process group: stopping the worker stops its runs.
    defaults["command"]["default"] = shlex.join([sys.executable, "-m", "prefect.engine"])
    defaults["working_dir"]["default"] = str(project)
    with _client(url) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template), overwrite=True)


def _client(url: str) -> SyncPrefectClient:
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(api=url)
