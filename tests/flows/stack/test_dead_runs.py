"""Runs that have died: marked by the death of their own process, or of our worker, and by nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client import orchestration
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.states import Completed, Crashed, Failed, Pending, Running

from flows.stack.dead_runs import settle
from flows.stack.liveness import PROCESS, labels

ALIVE = labels(1)
DEAD = ALIVE | {PROCESS: f"{os.getpid()} 17"}
OURS, THEIRS = ({"prefect.worker.name": name} for name in ("distill-up", "second"))


class Server:
    """What a server has, behind the part of Prefect's client that is used."""

    def __init__(self) -> None:
        self.runs: dict[UUID, FlowRun] = {}
        self.tasks: dict[UUID, TaskRun] = {}
        self.meanwhile: Callable[[], object] = lambda: None  # happens after all runs were asked for

    def __call__(self, api: str) -> Server:
        return self

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None: ...

    def add(self, state: State[Any], of_it: dict[str, Any], run_count: int = 1) -> tuple[UUID, UUID]:
        """A run in this state, with one task that runs."""
        run = FlowRun(id=uuid4(), flow_id=uuid4(), state=state, labels=of_it, run_count=run_count)
        task = TaskRun(id=uuid4(), task_key="t", dynamic_key="0", flow_run_id=run.id, state=Running())
        self.runs[run.id], self.tasks[task.id] = run, task
        return run.id, task.id

    def read_flow_runs(self, flow_run_filter: Any) -> list[FlowRun]:
        found = [run.model_copy() for run in self.runs.values() if run.state.type in flow_run_filter.state.type.any_]
        self.meanwhile()
        return found

    def read_flow_run(self, run_id: UUID) -> FlowRun:
        return self.runs[run_id]

    def read_task_runs(self, flow_run_filter: Any, task_run_filter: Any) -> list[TaskRun]:
        ended, running = flow_run_filter.state.type.any_, task_run_filter.state.type.any_
        tasks = self.tasks.values()
        return [t for t in tasks if t.state.type in running and self.runs[t.flow_run_id].state.type in ended]

    def set_flow_run_state(self, run_id: UUID, state: State[Any], force: bool) -> None:
        self.runs[run_id].state = state

    def set_task_run_state(self, task_id: UUID, state: State[Any], force: bool) -> None:
        self.tasks[task_id].state = state


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    there = Server()
    monkeypatch.setattr(orchestration, "SyncPrefectClient", there)
    return there


@pytest.mark.parametrize(
    ("state", "of_it", "with_worker", "without_worker"),
    [
        (Running(), DEAD | THEIRS, True, True),
        (Running(), DEAD, True, True),  # `distill run` beside the stack
        (Running(), ALIVE | THEIRS, False, False),
        (Running(), ALIVE | OURS, False, False),  # another's worker with our worker's name
        (Running(), OURS, False, True),
        (Pending(), OURS, False, True),
        (Pending(), DEAD | OURS, False, True),  # the dead process is that of an earlier attempt
        (Running(), THEIRS, False, False),
        (Pending(), {}, False, False),
    ],
)
def test_only_runs_whose_process_is_known_to_be_dead_crash(
    state: State[Any], of_it: dict[str, Any], with_worker: bool, without_worker: bool, server: Server
) -> None:
    for worker_runs, expected in ((True, with_worker), (False, without_worker)):
        run, _ = server.add(state, of_it)
        name = server.runs[run].name
        assert (name in settle("", worker_runs=worker_runs)) == expected
        assert (server.runs[run].state.type == StateType.CRASHED) == expected


def test_a_retry_whose_process_has_not_said_so_yet_is_not_dead(server: Server) -> None:
    run, _ = server.add(Running(), DEAD | THEIRS, run_count=2)
    assert settle("", worker_runs=True) == []
    assert server.runs[run].state.is_running()


def test_a_run_that_ends_well_while_we_look_stays_completed(server: Server) -> None:
    run, _ = server.add(Running(), DEAD)
    server.meanwhile = lambda: server.set_flow_run_state(run, Completed(), force=False)
    assert settle("", worker_runs=True) == []
    assert server.runs[run].state.is_completed()


@pytest.mark.parametrize(
    ("state", "of_it", "seconds_ago", "crashed"),
    [
        (Crashed(), THEIRS, 20, True),
        (Failed(), DEAD, 20, True),
        (Crashed(), DEAD, 5, False),  # what Prefect has not written down yet may still come
        (Crashed(), ALIVE, 20, False),
        (Completed(), DEAD, 20, False),
    ],
)
def test_tasks_end_with_their_run(
    state: State[Any], of_it: dict[str, Any], seconds_ago: float, crashed: bool, server: Server
) -> None:
    then = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    _, task = server.add(state.model_copy(update={"timestamp": then}), of_it)
    settle("", worker_runs=True)
    assert server.tasks[task].state.is_crashed() == crashed


def test_a_server_that_is_gone_stops_nothing() -> None:
    assert settle("http://127.0.0.1:9/api", worker_runs=True) == []
