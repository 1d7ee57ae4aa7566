"""The real local stack: deployments run and watched as a user would, runs that fail, a stack that is killed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.stack.up import SWEEP_SECONDS

pytestmark = pytest.mark.e2e

PROJECT = Path(__file__).parents[2]
RECIPES = Path(__file__).parent / "prefect.yaml"
SYSTEMS = ["teacher", "pre_distilled", "llmr"]
STAGES = ["prepare", "teacher", "score", "pre_distill", "llmr"]
STAGES += [f"{stage}[{system}]" for system in SYSTEMS for stage in ("decode", "measure")] + ["evaluate"]
READY_SECONDS = 240
SLOW = '{"max_steps": 1000000000, "epochs": 1000000000, "max_source_tokens": 16, "validate_every": 0}'


@dataclass
class Stack:
    """A running `distill up` with its own home and port."""

    home: Path
    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """What another shell has: the address of this stack, and nothing else of it."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        client = {"PREFECT_API_URL": self.url, "PREFECT_HOME": str(self.home / "client"), "COLUMNS": "200"}
        return clean | client | {"DISTILL_HOME": str(self.home)}

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("prefect", *arguments)

    def distill(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("flows.cli.main", *arguments)

    def ask(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """POST to one of the API's filters."""
        request = urllib.request.Request(
            f"{self.url}/{path}/filter", json.dumps(query).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)
            return found

    def newest_run(self) -> dict[str, Any]:
        return self.ask("flow_runs", sort="EXPECTED_START_TIME_DESC", limit=1)[0]

    def task_states(self, run_id: str) -> set[str]:
        return set(self.tasks(run_id).values())

    def tasks(self, run_id: str) -> dict[str, str]:
        """Stage -> state, as the server knows it."""
        asked = self.ask("task_runs", flow_runs={"id": {"any_": [run_id]}})
        return {task["name"].rsplit("-", 1)[0]: task["state_type"] for task in asked}

    def _run(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=PROJECT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def children_of(pid: int, word: str) -> list[int]:
    """The living children of a process with `word` in their command."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [int(each) for each, state, command in rows if word in command and not state.startswith("Z")]


def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def start(home: Path, port: int) -> Stack:
    """`distill up`, waited for until it says that it is ready."""
    output = home / "up.txt"
    with output.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", "up", "--port", str(port), "--prefect-file", str(RECIPES)],
            cwd=PROJECT,
            env=os.environ | {"DISTILL_HOME": str(home)},
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
    deadline = time.monotonic() + READY_SECONDS
    seen = output.read_text().count("Ready in")
    while output.read_text().count("Ready in") == seen:
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()  # it ends what it has started
            process.wait(timeout=120)
            pytest.fail(f"distill up did not get ready:\n{output.read_text()}")
        time.sleep(0.1)
    return Stack(home, port, process)


def stop(stack: Stack) -> int:
    stack.process.terminate()
    return stack.process.wait(timeout=120)


def slow_run(stack: Stack) -> dict[str, Any]:
    """A run whose second training does not end, once that has begun."""
    created = stack.prefect("deployment", "run", "distill/tiny", "--param", f"pre_distill={SLOW}")
    assert created.returncode == 0, created.stdout
    until(lambda: stack.tasks(stack.newest_run()["id"]).get("pre_distill") == "RUNNING")
    return stack.newest_run()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = start(tmp_path_factory.mktemp("home"), free_port())
    yield running
    if running.process.poll() is None:
        stop(running)


def test_a_deployment_runs_to_its_end_and_prefect_shows_what_came_out(stack: Stack) -> None:
    watched = stack.prefect("deployment", "run", "distill/tiny", "--watch")
    assert watched.returncode == 0, watched.stdout + watched.stderr
    run = stack.newest_run()
    assert run["state_type"] == "COMPLETED"
    until(lambda: len(stack.ask("task_runs")) >= len(STAGES))  # the server writes them down a little later
    assert [task["name"].rsplit("-", 1)[0] for task in stack.ask("task_runs", sort="EXPECTED_START_TIME_ASC")] == STAGES
    artifacts = {each["key"]: each for each in stack.ask("artifacts", limit=100) if each["key"]}
    keys = {re.sub("[^a-z]+", "-", stage).strip("-") for stage in STAGES} | {"comparison", "results", "report"}
    assert keys | {"teacher-curves", "pre-distill-curves", "llmr-curves"} <= set(artifacts)
    assert {"test split", "teacher", "pre-distilled", "LLMR"} == set(json.loads(artifacts["comparison"]["data"])[0])
    assert "data:image/png;base64," in artifacts["llmr-curves"]["data"]
    assert str(stack.home / "results.duckdb") in artifacts["results"]["data"]
    sql = stack.distill("sql", "select name, state from runs", "--format", "csv")
    assert sql.stdout.splitlines() == ["name,state", "tiny,completed"]


def test_a_comparison_on_running_text_runs_as_a_deployment(stack: Stack) -> None:
    watched = stack.prefect("deployment", "run", "compare/tiny-text", "--watch")
    assert watched.returncode == 0, watched.stdout + watched.stderr
    run = stack.newest_run()
    assert run["state_type"] == "COMPLETED"
    made = stack.ask("artifacts", limit=200, flow_runs={"id": {"any_": [run["id"]]}})
    artifacts = {each["key"]: each for each in made if each["key"]}
    assert "data:image/png;base64," in artifacts["comparison-figure"]["data"]
    assert {"next-token", "dad-dagger"} <= set(json.loads(artifacts["comparison"]["data"])[0])
    sql = stack.distill("sql", "select method, seeds from comparison where metric = 'perplexity'", "--format", "csv")
    assert sorted(sql.stdout.splitlines()) == [
        "dad-dagger,2",
        "method,seeds",
        "next-token,2",
        "student,2",
        "teacher,2",
    ]


def test_a_failing_deployment_exits_with_1_and_the_reason_is_visible(stack: Stack) -> None:
    before = sorted((stack.home / "artifacts").rglob("*"))
    watched = stack.prefect("deployment", "run", "distill/failing", "--watch")
    assert watched.returncode == 1
    state = stack.newest_run()["state"]
    assert state["type"] == "FAILED"
    assert "answer" in state["message"].splitlines()[0]
    assert state["message"].splitlines()[0] in watched.stdout
    assert "Traceback" not in watched.stdout
    assert sorted((stack.home / "artifacts").rglob("*")) == before


def test_a_wrong_setting_is_refused_before_anything_starts(stack: Stack) -> None:
    before = stack.newest_run()["id"]
    refused = stack.prefect("deployment", "run", "distill/tiny", "--param", 'method={"learnin_rate": 1}')
    assert refused.returncode == 1
    assert "learnin_rate" in refused.stdout
    assert stack.newest_run()["id"] == before


def test_distill_run_is_recorded_while_the_stack_is_up(stack: Stack) -> None:
    done = stack.distill("run", "tiny", "--prefect-file", str(RECIPES))
    assert done.returncode == 0, done.stderr
    run = stack.newest_run()
    assert (run["name"], run["state_type"]) == ("tiny", "COMPLETED")
    failed = stack.distill("run", "failing", "--prefect-file", str(RECIPES))
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
    assert stack.newest_run()["state_type"] == "FAILED"


SLOT = """
from contextlib import ExitStack
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from flows.stack import recorded
from tasks.compute.device_lock import Device
recorded.WAIT_SECONDS = 2.0
device = Device("cuda:0", "5fd4f087-86f3")

def taken():
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name("gpu-5fd4f087").active_slots

@flow
def run():
    with ExitStack() as held:
        @task
        def stage():
            held.enter_context(recorded.slot(device, print))
        stage()
        print(taken())
    print(taken())

run()
with get_client(sync_client=True) as client:
    client.update_global_concurrency_limit("gpu-5fd4f087", GlobalConcurrencyLimitUpdate(active_slots=1))
with recorded.slot(device, print):
    print("goes on")
"""


def test_a_devices_slot_outlives_the_stage_that_took_it_and_one_that_nobody_frees_stops_no_run(stack: Stack) -> None:
    held = subprocess.run(
        [sys.executable, "-c", SLOT], cwd=PROJECT, env=stack.environment, capture_output=True, text=True, timeout=240
    )
    *slots, said, last = held.stdout.splitlines()
    assert slots == ["1", "0"], held.stderr
    assert said.startswith("Prefect's limit gpu-5fd4f087 has had no free slot for 2 s; going on without")
    assert said.endswith("prefect gcl update gpu-5fd4f087 --active-slots 0")
    assert last == "goes on"


def test_a_second_stack_on_the_same_home_or_port_is_refused_in_one_line(stack: Stack, tmp_path: Path) -> None:
    same_home = stack.distill("up", "--port", str(free_port()))
    assert same_home.returncode == 1
    assert same_home.stderr.startswith(f"error: `distill up` is running already for {stack.home}")
    other = Stack(tmp_path, stack.port, stack.process).distill("up", "--port", str(stack.port))
    assert other.returncode == 1
    assert other.stderr.splitlines() == [
        f"error: port {stack.port} on 127.0.0.1 cannot be used: address already in use",
        f"stop the program that has it, or choose another: distill up --port {stack.port + 1}",
    ]


def test_a_run_ends_with_its_own_process_whoever_had_it_in_hand(stack: Stack) -> None:
    """Our worker is killed, then the one that has the run, then the run: only the last is the run's end."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "distill", "--name", "second"]
    (ours,) = children_of(stack.process.pid, "worker")
    said = stack.home / "second.txt"
    with (
        said.open("w") as output,
        subprocess.Popen(command, env=stack.environment, stdout=output, cwd=PROJECT) as second,
    ):
        try:
            until(lambda: "started!" in said.read_text())
            os.kill(ours, signal.SIGSTOP)  # so that the second one takes the run
            run = slow_run(stack)
            os.kill(ours, signal.SIGKILL)
            until(lambda: children_of(stack.process.pid, "worker") not in ([], [ours]))
            assert stack.newest_run()["state_type"] == "RUNNING"
        finally:
            os.kill(ours, signal.SIGKILL) if ours in children_of(stack.process.pid, "worker") else None
            second.kill()
    time.sleep(2 * SWEEP_SECONDS)
    assert stack.newest_run()["state_type"] == "RUNNING"
    os.kill(int(run["labels"]["distill.process"].split()[0]), signal.SIGKILL)
    until(lambda: stack.newest_run()["state_type"] == "CRASHED")
    until(lambda: stack.task_states(run["id"]) == {"COMPLETED", "CRASHED"})


def test_the_tasks_of_a_killed_run_end_too_where_prefect_itself_notices_its_end(stack: Stack) -> None:
    run = slow_run(stack)
    os.kill(stack.process.pid, signal.SIGSTOP)  # or our own look at processes might come first
    try:
        os.kill(int(run["labels"]["distill.process"].split()[0]), signal.SIGKILL)
        until(lambda: stack.newest_run()["state_type"] == "CRASHED")
        assert "status code: -9" in stack.newest_run()["state"]["message"]
    finally:
        os.kill(stack.process.pid, signal.SIGCONT)
    until(lambda: stack.task_states(run["id"]) == {"COMPLETED", "CRASHED"})


def test_a_killed_stack_leaves_no_run_going_and_the_next_one_goes_on(stack: Stack) -> None:
    """Last, because the stack of this module is killed in it and another one takes its place."""
    slow_run(stack)
    os.kill(stack.process.pid, signal.SIGKILL)
    stack.process.wait()
    successor = start(stack.home, stack.port)
    try:
        run = successor.newest_run()
        assert run["state_type"] == "CRASHED"
        assert "run it again" in run["state"]["message"]
        assert successor.task_states(run["id"]) == {"COMPLETED", "CRASHED"}
    finally:
        assert stop(successor) == 0
