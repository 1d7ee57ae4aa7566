"""`distill deploy`: registers the catalogue with a Prefect that exists already, to be computed by a worker elsewhere.

The server's address comes from PREFECT_API_URL or the active profile. So do keys, which nothing here reads or prints.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import yaml

from flows.deployments import deployments, is_ours

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

LAST_LINES = 5
PAGE = 200  # deployments in one answer of the server, at most


def deploy(
    project: Path, prefect_file: Path, pool: str, kind: str | None, directory: Path, say: Callable[[str], None]
) -> None:
    """Register the runs of `prefect_file` with the server, on a work pool that is made where it is not there.

    kind: the pool's type: process, docker, kubernetes, …; None = what it is, or process. directory: where this project
    lies on the machine that computes. Raises ValueError, before anything is registered, for a server that is not there
    or of another version, a pool of another type, and a deployment of the same name that is not ours.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = address()
    content = yaml.safe_load(prefect_file.read_text(encoding="utf-8"))
    runs = [each for each in deployments(prefect_file) or [] if is_ours(each)]
    content["deployments"] = [each | {"work_pool": (each.get("work_pool") or {}) | {"name": pool}} for each in runs]
    with (
        temporary_settings({PREFECT_API_URL: url}),
        _explained(url),
        get_client(sync_client=True) as client,
    ):
        _check_version(client, url, say)
        _check_names(client, runs)
        made = _make_pool(client, pool, kind)
    _register(content, project, directory, url)
    say(_what_next(runs, made, pool, directory, url))


def address() -> str:
    """The server's, of the environment or the profile. This project's own settings, for `distill up`, do not count."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        from prefect.settings import PREFECT_API_URL, load_current_profile

        url = load_current_profile().settings.get(PREFECT_API_URL)
    if not url:
        raise ValueError(
            "no Prefect server is named: PREFECT_API_URL is not set, nor is it in the active profile\n"
            "set it, for instance to http://prefect.example:4200/api; without a server: distill up"
        )
    parts = urlsplit(str(url))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(
            f"PREFECT_API_URL must be the address of an API, got {shown(url)!r}\n"
            "set it, for instance to http://prefect.example:4200/api"
        )
    return str(url)


def shown(url: str) -> str:
    """An address without the name and the password that it may hold."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Say in two lines why a server does not answer, or not as a Prefect server does."""
    from httpx import HTTPError, HTTPStatusError

    try:
        yield
    except HTTPStatusError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise ValueError(
                f"the Prefect server at {shown(url)} refuses this user (HTTP {code})\n"
                "set PREFECT_API_KEY (Cloud) or PREFECT_API_AUTH_STRING (self-hosted) to one that may deploy"
            ) from None
        raise ValueError(
            f"what answers at {shown(url)} does not answer as a Prefect API (HTTP {code})\n"
            "set PREFECT_API_URL to the API's address, which ends in /api or in /workspaces/ and an id"
        ) from None
    except json.JSONDecodeError:
        raise ValueError(
            f"what answers at {shown(url)} is no Prefect API\n"
            "set PREFECT_API_URL to the API's address, which ends in /api or in /workspaces/ and an id"
        ) from None
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"no Prefect server answers at {shown(url)}: {str(error).lower() or type(error).__name__}\n"
            "start it, or set PREFECT_API_URL to one that runs; without a server: distill up"
        ) from None


def _check_version(client: SyncPrefectClient, url: str, say: Callable[[str], None]) -> None:
    """Raise ValueError for a server of another major version; say it of an older one. Cloud is always new enough."""
    from packaging.version import InvalidVersion, Version
    from prefect.client.base import ServerType

    if client.server_type == ServerType.CLOUD:
        return
    theirs, ours = client.api_version(), client.client_version()
    try:
        older, other = Version(theirs) < Version(ours), Version(theirs).major != Version(ours).major
    except (InvalidVersion, TypeError):
        raise ValueError(
            f"what answers at {shown(url)} is no Prefect API\nset PREFECT_API_URL to its address"
        ) from None
    if other:
        raise ValueError(
            f"the Prefect server at {shown(url)} is version {theirs}, and this project works with {ours}\n"
            f"use a server of version {ours.split('.')[0]}"
        )
    if older:
        say(f"note: the server is version {theirs}, older than {ours} here: if a run cannot start, upgrade the server")


def _check_names(client: SyncPrefectClient, runs: Sequence[dict[str, str]]) -> None:
    """Raise ValueError if a deployment on the server has one of our names and is of another program."""
    from prefect.client.schemas import filters

    for flow in ("distill", "compare"):
        names = [each["name"] for each in runs if each["entrypoint"].endswith(":compare") == (flow == "compare")]
        for start in range(0, len(names), PAGE):
            wanted = filters.DeploymentFilterName(any_=names[start : start + PAGE])
            for found in client.read_deployments(
                flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=[flow])),
                deployment_filter=filters.DeploymentFilter(name=wanted),
                limit=PAGE,
            ):
                if not is_ours({"entrypoint": found.entrypoint}):
                    raise ValueError(
                        f"the server has a deployment {flow}/{found.name} that is not ours, of {found.entrypoint}\n"
                        "delete it there, rename the run in prefect.yaml, or use another workspace or server"
                    )


def _make_pool(client: SyncPrefectClient, name: str, kind: str | None) -> str:
    """Make the work pool if it is not there; returns its type, in words. Raises ValueError for one of another type."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.utilities import (
        get_available_work_pool_types,
        get_default_base_job_template_for_infrastructure_type,
    )

    try:
        found = client.read_work_pool(name).type
    except ObjectNotFound:
        kind = kind or "process"
        template = asyncio.run(get_default_base_job_template_for_infrastructure_type(kind))
        if template is None:
            known = sorted(asyncio.run(get_available_work_pool_types()))
            raise ValueError(f"there is no work pool of type {kind!r}\nthere are: {', '.join(known)}") from None
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
        return f"{kind}, made now"
    if kind is not None and found != kind:
        raise ValueError(
            f"the work pool {name} is of type {found}, not {kind}\n"
            f"leave --type out, or name another pool: --pool {name}-{kind}"
        )
    return found


def _register(content: dict[str, object], project: Path, directory: Path, url: str) -> None:
    """Let Prefect deploy them; `{{ $PWD }}` in a catalogue is where the project lies on the machine that computes."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
            cwd=project,
            env=os.environ | {"PREFECT_API_URL": url, "PWD": str(directory), "DO_NOT_TRACK": "1", "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        said = " ".join(lines[-LAST_LINES:]).replace(url, shown(url))
        raise ValueError(
            f"`prefect deploy` ended with exit code {done.returncode}: {said}\nmend that, and deploy again"
        )


def _what_next(runs: Sequence[dict[str, str]], made: str, pool: str, directory: Path, url: str) -> str:
    first = next((each["name"] for each in runs if not each["entrypoint"].endswith(":compare")), "NAME")
    return "\n".join(
        [
            f"{len(runs)} runs are registered at {shown(url)}, for the work pool {pool} ({made}).",
            *_to_compute(made.partition(",")[0], pool, shlex.quote(str(directory)), f"PREFECT_API_URL={shown(url)}"),
            "From any machine:",
            f"  PREFECT_API_URL={shown(url)} prefect deployment run distill/{first} --watch",
        ]
    )


def _to_compute(kind: str, pool: str, directory: str, address: str) -> list[str]:
    """What is still to be done so that runs of a pool of this type are computed."""
    start = f"prefect worker start --pool {shlex.quote(pool)}"
    if kind == "process":
        return ["On the machine that computes:", f"  cd {directory}", f"  {address} .venv/bin/{start}"]
    name = f"In the pool's job variables, name an image that holds this project, set up in {directory}; "
    name += "a GPU; and a volume for DISTILL_HOME."
    if kind in ("docker", "kubernetes"):
        return [name, f"Where its worker is to run, with prefect-{kind} installed:", f"  {address} {start}"]
    return [name, f"What starts the runs of a pool of type {kind}: https://docs.prefect.io/v3/concepts/work-pools"]
