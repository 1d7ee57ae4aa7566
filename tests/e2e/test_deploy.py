"""`distill deploy` against a Prefect server of its own on a real PostgreSQL, and a worker as on a machine with a GPU.

Minutes: `make test-postgres` runs it, `make test` does not.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from flows.catalogue import load_catalogue
from flows.stack.server import is_healthy
from tests.e2e.test_stack import PROJECT, RECIPES, STAGES, Stack, free_port, until

GRACE_SECONDS = 30.0
NOBODY = 65534  # PostgreSQL does not run as root


def binary(name: str) -> Path | None:
    """A program of PostgreSQL's, where Debian puts it too, which is on nobody's path."""
    found = shutil.which(name)
    return Path(found) if found else next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)


pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(binary("initdb") is None or binary("postgres") is None, reason="PostgreSQL is not installed"),
]


@dataclass
class Database:
    """A running PostgreSQL with a password, on this machine only."""

    port: int
    password: str

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://prefect:{self.password}@127.0.0.1:{self.port}/postgres"

    def ask(self, query: str) -> str:
        command = [
            str(binary("psql")),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "prefect",
            "-Atc",
            query,
            "postgres",
        ]
        environment = os.environ | {"PGPASSWORD": self.password}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background, ended at the end; its words are in `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=GRACE_SECONDS)
            except subprocess.TimeoutExpired:  # Prefect's worker, now and then
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    as_whom: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    with TemporaryDirectory(prefix="distill-postgres-") as folder:
        home, found = Path(folder), Database(free_port(), secrets.token_urlsafe(12))
        (home / "password").write_text(found.password)
        if as_whom:
            for path in (home, home / "password"):
                os.chown(path, NOBODY, NOBODY)
        options = {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}, **as_whom}
        make = [
            "-D",
            f"{folder}/data",
            "-U",
            "prefect",
            "-A",
            "scram-sha-256",
            f"--pwfile={folder}/password",
            "--no-sync",
        ]
        made = subprocess.run([str(binary("initdb")), *make], capture_output=True, text=True, **options)
        assert made.returncode == 0, made.stderr
        serve = ["-D", f"{folder}/data", "-k", folder, "-h", "127.0.0.1", "-p", str(found.port), "-c", "fsync=off"]
        with running([str(binary("postgres")), *serve], home / "log", **options):
            until(lambda: "ready to accept connections" in (home / "log").read_text(), 60)
            yield found


@pytest.fixture(scope="module")
def server(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Prefect server that has nothing to do with this project: another folder, another database."""
    home, port = tmp_path_factory.mktemp("home"), free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own = {
        "PREFECT_API_DATABASE_CONNECTION_URL": database.url,
        "PREFECT_HOME": str(home / "server"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "0",
    }
    (home / "elsewhere").mkdir()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, home / "server.log", env=clean | own, cwd=home / "elsewhere") as process:
        stack = Stack(home, port, process)  # type: ignore[arg-type]
        until(lambda: is_healthy(stack.url) or process.poll() is not None, 240)
        assert process.poll() is None, (home / "server.log").read_text()[-3000:]
        yield stack


def test_the_catalogue_is_registered_and_a_worker_elsewhere_runs_it(server: Stack, database: Database) -> None:
    """The paper's run on CNN/DailyMail as the catalogue has it, with small stand-ins for its models and its pairs."""
    runs = load_catalogue(PROJECT / "prefect.yaml")
    done = server.distill("deploy", "--pool", "gpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == (
        f"{len(runs)} runs are registered at {server.url}, for the work pool gpu (process, made now)."
    )
    assert database.ask("select count(*) from deployment") == str(len(runs))
    assert database.ask("select name, type from work_pool") == "gpu|process"

    tiny = next(each for each in yaml.safe_load(RECIPES.read_text())["deployments"] if each["name"] == "tiny")
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "gpu"]
    with running(worker, server.home / "worker.log", env=server.environment, cwd=server.home / "elsewhere"):
        given = json.dumps(tiny["parameters"])
        watched = server.prefect("deployment", "run", "distill/llmr-cnndm", "--params", given, "--watch")
    assert watched.returncode == 0, watched.stdout + watched.stderr + (server.home / "worker.log").read_text()[-3000:]
    run = server.newest_run()
    assert (run["state_type"], run["work_pool_name"]) == ("COMPLETED", "gpu")
    until(lambda: set(server.tasks(run["id"])) == set(STAGES))
    artifacts = {each["key"] for each in server.ask("artifacts", limit=100)}
    assert {"comparison", "results", "llmr-curves"} <= artifacts
    assert database.ask("select count(*) from flow_run where state_type = 'COMPLETED'") == "1"
    sql = server.distill("sql", "select name, state from runs", "--format", "csv")
    assert sql.stdout.splitlines() == ["name,state", "llmr-cnndm,completed"]


def test_a_pool_of_another_type_is_refused_and_one_that_has_an_image_can_be_made(
    server: Stack, database: Database
) -> None:
    image = ("--type", "docker", "--directory", "/opt/distill")
    for made in ("docker, made now", "docker"):
        done = server.distill("deploy", "--prefect-file", str(RECIPES), "--pool", "boxes", *image)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"for the work pool boxes ({made})" in done.stdout
        assert "name an image that holds this project, set up in /opt/distill; a GPU; and" in done.stdout
        assert ".venv" not in done.stdout
    asked = (
        "select distinct pull_steps->0->'prefect.deployments.steps.set_working_directory'->>'directory' from deployment"
    )
    assert database.ask(f"{asked} where name = 'tiny'") == "/opt/distill"
    refused = server.distill("deploy", "--pool", "boxes", "--type", "process")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "error: the work pool boxes is of type docker, not process",
        "leave --type out, or name another pool: --pool boxes-process",
    ]
    unknown = server.distill("deploy", "--pool", "new", "--type", "abacus")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: there is no work pool of type 'abacus'\nthere are: ")
    assert "process" in unknown.stderr


def test_a_deployment_of_our_name_that_is_not_ours_is_left_alone(server: Stack, database: Database) -> None:
    changed = database.ask("update deployment set entrypoint = 'etl.py:distill' where name = 'tiny' returning id")
    assert changed
    refused = server.distill("deploy", "--prefect-file", str(RECIPES), "--pool", "gpu")
    assert refused.returncode == 1
    first, second = refused.stderr.splitlines()
    assert first == "error: the server has a deployment distill/tiny that is not ours, of etl.py:distill"
    assert second.startswith("delete it there, ")
    assert database.ask("select entrypoint from deployment where name = 'tiny'") == "etl.py:distill"


HOLD = """
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from flows.stack.recorded import limit_of, slot
from tasks.compute.device_lock import Device
device = Device("cuda:0", "5fd4f087-86f3")

def limit():
    with get_client(sync_client=True) as client:
        found = client.read_global_concurrency_limit_by_name(limit_of(device))
        return found.limit, found.active_slots

with slot(device, print):
    print(*limit())
print(*limit())
with get_client(sync_client=True) as client:
    client.update_global_concurrency_limit(limit_of(device), GlobalConcurrencyLimitUpdate(limit=3))
with slot(device, print):
    print(*limit())
"""


def test_prefects_limit_of_a_device_shows_that_it_is_taken_and_stays_as_somebody_has_set_it(server: Stack) -> None:
    held = subprocess.run(
        [sys.executable, "-c", HOLD], cwd=PROJECT, env=server.environment, capture_output=True, text=True, timeout=240
    )
    assert held.stdout.splitlines() == ["1 1", "1 0", "3 1"], held.stderr
