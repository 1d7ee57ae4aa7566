"""Runs an outline as a Prefect flow run: recorded, with artifacts in Prefect's UI, and failures told in one line."""

import importlib
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from inspect import Parameter, Signature, getdoc
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from httpx import HTTPError, HTTPStatusError
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.context import ConcurrencyContext
from prefect.concurrency.sync import concurrency
from prefect.exceptions import FailedRun, ObjectAlreadyExists
from prefect.runtime import deployment, flow_run
from prefect.states import Failed

from flows.outlines import Outline, execute
from flows.output import streams
from flows.output.messages import explain, is_explained
from flows.stack.liveness import labels
from flows.stack.publish import PrefectReporter, publish_report, publish_results
from tasks.compute.device import check_device
from tasks.compute.device_lock import Device
from tasks.messages import first_line
from tasks.ranges import check_numbers
from tasks.report import report_path
from tasks.store.artifacts import Store, default_root
from tasks.store.progress import default_reporter

Function = TypeVar("Function", bound=Callable[..., Any])
LEASE_SECONDS = 60.0  # the least that Prefect allows
WAIT_SECONDS = 150.0  # for a slot: longer than a killed run's lease and what Prefect lets pass between two attempts
RUNTIME = "    runtime: device, threads, checkpoints, trackers, who makes shards and trains; changes no result"


def takes_parameters_of(outline: Outline) -> Callable[[Function], Function]:
    """Declare, for a function of `**parameters`, the outline's parameters with types, defaults and descriptions.

    Prefect reads the schema of a deployment, its form and its checks from a function's signature and docstring.
    """

    def declare(function: Function) -> Function:
        known = outline.parameters
        function.__annotations__ = {name: hint for name, (hint, _) in known.items()}
        function.__signature__ = Signature(  # type: ignore[attr-defined]
            [
                Parameter(n, Parameter.KEYWORD_ONLY, annotation=hint, default=default)
                for n, (hint, default) in known.items()
            ]
        )
        function.__doc__ = f"{getdoc(outline.pipeline)}\n{RUNTIME}"
        return function

    return declare


def run_in_prefect(outline: Outline, parameters: dict[str, Any]) -> State[Any] | tuple[str, str]:
    """Run an outline inside a flow and publish its results. A user's mistake is a failed state with its one line."""
    streams.secure()
    streams.outlive_readers()
    logger = get_run_logger()
    _say_which_process()
    try:
        for name, value in parameters.items():
            check_numbers(name, value)
        check_device(parameters["runtime"])
        store, name = Store(default_root()), _run_name()
        reporter = PrefectReporter(store, default_reporter())
        shown = partial(slot, say=reporter.warning)
        run, last = execute(outline, store, name, parameters, reporter, beside=shown)
        publish_results(run, last, store)
        publish_report(run.run_id, report_path(store, run.run_id))
    except Exception as error:
        if not is_explained(error):
            raise
        logger.error(explain(error))
        logging.getLogger("prefect.flow_runs").addFilter(_not_failed_run)
        return Failed(message=explain(error))
    return run.run_id, str(last.path)


def run_recorded(outline: Outline, name: str, parameters: dict[str, Any]) -> tuple[str, Path]:
    """Run the flow in this process, recorded by the server that PREFECT_API_URL names: its run id and last artifact.

    Raises what made the run fail.
    """
    module, _, function = outline.entrypoint.partition(":")
    flow = getattr(importlib.import_module(module.removesuffix(".py").replace("/", ".")), function)
    state: State[Any] = flow.with_options(flow_run_name=name)(**parameters, return_state=True)
    try:
        run_id, last = state.result()
    except FailedRun:
        raise ValueError(state.message) from None
    return run_id, Path(last)


def _say_which_process() -> None:
    """Label the flow run with this process, so that its death can be detected."""
    with suppress(HTTPError), get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(str(flow_run.id)), labels(int(flow_run.run_count)))


def _run_name() -> str:
    """The named run: the deployment's name, or the name that `distill run` gave to the flow run."""
    if not deployment.name:
        return str(flow_run.name)
    return f"compare/{deployment.name}" if flow_run.flow_name == "compare" else str(deployment.name)


def limit_of(device: Device) -> str:
    """The name of Prefect's limit for a device: `gpu-5fd4f087`, the same in every container, whose names differ."""
    return f"gpu-{platform.node() if device.id == 'mps' else device.id[:8]}"


@contextmanager
def slot(device: Device, say: Callable[[str], None]) -> Iterator[None]:
    """Occupy the one slot of Prefect's concurrency limit for a device, which is made if it is not there.

    The limit shows that the device is taken, and decides nothing: the device's lock has been taken before. So a run
    waits `WAIT_SECONDS` for the slot at most, and goes on without one, as where the server does not answer, and says
    so. A server that lets nobody make limits has none. A killed run's slot is free within a minute, or never where the
    server has started again meanwhile and has lost its leases.
    """
    name, taken = limit_of(device), ExitStack()
    try:
        with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists, HTTPStatusError):
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        with ConcurrencyContext() as ours:  # the stage's own would free the slot when that stage is done
            taken.enter_context(concurrency(name, timeout_seconds=WAIT_SECONDS, lease_duration=LEASE_SECONDS))
            ours.cleanup_lease_ids.clear()
    except TimeoutError:
        say(
            f"Prefect's limit {name} has had no free slot for {WAIT_SECONDS:.0f} s; going on without, as {device.name} "
            f"is locked for this run. If nothing else computes there: prefect gcl update {name} --active-slots 0"
        )
    except (HTTPError, ConcurrencySlotAcquisitionError) as error:
        say(f"Prefect's limit {name} does not show that {device.name} is taken: {first_line(error)}; going on without")
    try:
        yield
    finally:
        with suppress(HTTPError):  # the lease ends by itself
            taken.close()


def _not_failed_run(record: logging.LogRecord) -> bool:
    """Keep the traceback of Prefect's own FailedRun out of the log: the reason has just been said in one line."""
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))
