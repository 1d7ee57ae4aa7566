"""Marks flow runs whose process has died as Crashed; Prefect would show them, and their tasks, as running for ever."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from flows.stack.liveness import alive

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilterStateType
    from prefect.client.schemas.objects import FlowRun

WORKER = "distill-up"  # the name of the stack's own worker
LATE_SECONDS = 15.0  # Prefect writes the states of tasks down a little later than those of flows
MESSAGE = "The process has died. Its finished stages and checkpoints are kept: run it again."


def settle(url: str, *, worker_runs: bool, late_seconds: float = LATE_SECONDS) -> list[str]:
    """Mark dead flow runs and their tasks as Crashed; returns the names of the runs.

    url: of the server's API. worker_runs: whether the stack's own worker is running; if not, every run that it had is
    dead, because its process group ended with it. A run whose process this machine cannot know is left alone.
    """
    from httpx import HTTPError
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.exceptions import PrefectException

    names: list[str] = []
    with suppress(HTTPError, PrefectException), SyncPrefectClient(api=url) as client:  # server or run gone meanwhile
        names += _crash_runs(client, worker_runs=worker_runs)
        _crash_task_runs(client, late_seconds)
    return names


def _crash_runs(client: SyncPrefectClient, *, worker_runs: bool) -> list[str]:
    """Mark the runs whose process is known to be dead."""
    from prefect.client.schemas import filters
    from prefect.states import Crashed

    runs = client.read_flow_runs(flow_run_filter=filters.FlowRunFilter(state=filters.FlowRunFilterState(type=_going())))
    names = []
    for run in runs:
        # Asked again, because it may have ended well, and its process with it, since we asked for all.
        if _is_dead(run, worker_runs=worker_runs) and not _has_ended(client.read_flow_run(run.id)):
            client.set_flow_run_state(run.id, Crashed(message=MESSAGE), force=True)
            names.append(run.name)
    return names


def _crash_task_runs(client: SyncPrefectClient, late_seconds: float) -> None:
    """Mark tasks as Crashed that are still running although their flow run has crashed or failed."""
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    ended = filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=[StateType.CRASHED, StateType.FAILED]))
    running = filters.TaskRunFilterState(type=filters.TaskRunFilterStateType(any_=_going().any_))
    tasks = client.read_task_runs(
        flow_run_filter=filters.FlowRunFilter(state=ended), task_run_filter=filters.TaskRunFilter(state=running)
    )
    latest = datetime.now(UTC) - timedelta(seconds=late_seconds)
    over = {}
    for task in tasks:
        if task.flow_run_id is None:
            continue
        if task.flow_run_id not in over:
            run = client.read_flow_run(task.flow_run_id)
            since = run.state.timestamp if run.state is not None else latest
            over[run.id] = alive(run.labels, run.run_count) is not True and since <= latest
        if over[task.flow_run_id]:
            client.set_task_run_state(task.id, Crashed(message=MESSAGE), force=True)


def _is_dead(run: FlowRun, *, worker_runs: bool) -> bool:
    starting = (
        run.state is not None and run.state.is_pending()
    )  # the labels are of an earlier attempt, if there are any
    known = alive(run.labels, run.run_count + starting)
    if known is None:
        return not worker_runs and run.labels.get("prefect.worker.name") == WORKER
    return not known


def _has_ended(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def _going() -> FlowRunFilterStateType:
    from prefect.client.schemas.filters import FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    return FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
