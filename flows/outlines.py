"""What a flow does, without Prefect: its outline of stages, its parameters, and what is checked before it starts."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flows.settings import jsonable, signature

if TYPE_CHECKING:
    from tasks.compute.device_lock import Device
    from tasks.engine.settings import RuntimeSettings
    from tasks.store.artifacts import Artifact, Store
    from tasks.store.progress import Reporter
    from tasks.store.stage import PlanRow, Run

MODULES = {  # a deployment's entrypoint -> where its outline is
    "flows/distill.py:distill": "flows.distill_outline",
    "flows/distill_text.py:distill_text": "flows.distill_text_outline",
    "flows/compare.py:compare": "flows.compare_outline",
}


@dataclass(frozen=True)
class Outline:
    """One flow: which stages it calls in which order, and what is checked before it starts.

    pipeline: calls the stages, inside `open_run`, and returns the last one's artifact. Its signature, with the
    docstring's `Args`, is where the parameters of a run are declared, for the command line and for Prefect.
    check: raises ValueError for settings that cannot work together; returns remarks on odd ones.
    asks: whether a run asks an endpoint for anything. check_plan: then the same as check, knowing which stages would be
    computed; at most one remark.
    """

    entrypoint: str
    pipeline: Callable[..., Artifact]
    check: Callable[[Mapping[str, Any]], list[str]]
    asks: Callable[[Mapping[str, Any]], bool] = lambda settings: False
    check_plan: Callable[[Mapping[str, Any], Sequence[PlanRow]], str | None] | None = None

    @property
    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """What a run can be told: name → (type, default)."""
        from tasks.engine.settings import RuntimeSettings

        return signature(self.pipeline) | {"runtime": (RuntimeSettings, RuntimeSettings())}


def outline_of(entrypoint: str) -> Outline:
    """The outline behind a deployment's entrypoint. Raises ValueError for one that is none of ours."""
    if entrypoint not in MODULES:
        raise ValueError(f"there is no flow {entrypoint!r} here\nthere are: {', '.join(MODULES)}")
    outline: Outline = importlib.import_module(MODULES[entrypoint]).OUTLINE
    return outline


def execute(
    outline: Outline,
    store: Store,
    name: str,
    parameters: Mapping[str, Any],
    reporter: Reporter,
    *,
    planning: bool = False,
    beside: Callable[[Device], AbstractContextManager[None]] = lambda device: nullcontext(),
    find: Callable[[str], Sequence[Device]] | None = None,
) -> tuple[Run, Artifact]:
    """Run (or plan) an outline with validated parameters, record it, and rebuild the results' database.

    From its first stage that is computed to its end, a run has its devices to itself. `beside` is held with each: what
    shows elsewhere that it is taken. `find` says which devices there are; None = ask torch.
    """
    from tasks.compute.device import slow_precision
    from tasks.messages import first_line
    from tasks.preflight.ranks import idle_workers, no_room
    from tasks.preflight.sharded import check_sharded, check_spread
    from tasks.store.progress import NullReporter
    from tasks.store.stage import open_run

    parameters = with_precision(parameters, parameters["runtime"])
    settings = dict(parameters)
    runtime: RuntimeSettings = settings.pop("runtime")
    for oddity in outline.check(settings):
        reporter.warning(oddity)
    if (slow := slow_precision(runtime, settings.values())) is not None:
        reporter.warning(slow)
    check_sharded(runtime.sharded, settings)
    check_spread(runtime.teacher_devices, settings)
    if (problem := no_room(runtime)) is not None:
        if not planning:
            raise ValueError(problem)
        reporter.warning(f"here a run is refused: {first_line(ValueError(problem))}")

    lengths = settings.get("lengths")  # of the flows that have them; the record names those of every stage
    recorded = jsonable({name: lengths.fill(value) for name, value in parameters.items()} if lengths else parameters)
    if (idle := idle_workers(runtime, recorded)) is not None:
        reporter.warning(idle)

    def opened(reporter: Reporter, *, planning: bool) -> AbstractContextManager[Run]:
        return open_run(
            store,
            name=name,
            flow=outline.entrypoint,
            parameters=recorded,
            runtime=runtime,
            reporter=reporter,
            planning=planning,
        )

    if outline.check_plan is not None and not planning and outline.asks(settings):
        with opened(NullReporter(), planning=True) as planned:
            outline.pipeline(**settings)
        remark = outline.check_plan(settings, planned.plan)
        if remark is not None:
            reporter.warning(remark)
    with ExitStack() as held, opened(reporter, planning=planning) as run:
        run.claim = _claim(run, held, beside, find)
        last = outline.pipeline(**settings)
        if not planning:  # a run that was killed before its results were written has not completed
            run.record.end("completed")
            _write_results(store, run)
    return run, last


def with_precision(parameters: Mapping[str, Any], runtime: RuntimeSettings) -> dict[str, Any]:
    """A run's parameters, with the precision that its device is fast in wherever they leave it to the run."""
    from kd_core.precision import fill_precision
    from tasks.compute.device import precision_of

    return {name: fill_precision(value, lambda: precision_of(runtime)) for name, value in parameters.items()}


def _claim(
    run: Run,
    held: ExitStack,
    beside: Callable[[Device], AbstractContextManager[None]],
    find: Callable[[str], Sequence[Device]] | None,
) -> Callable[[RuntimeSettings], RuntimeSettings]:
    """Waits, the first time that it is called, for devices that no other run has, and names the first of them."""
    at_first = run.claim

    def claim(runtime: RuntimeSettings) -> RuntimeSettings:
        from tasks.compute.device_lock import devices_here, own_devices

        run.claim = at_first
        together = runtime.teacher_devices if runtime.engine == "local" else 1
        found = find(runtime.device) if find else devices_here(runtime.device, together)
        devices = held.enter_context(own_devices(found, run.reporter.warning, together))
        for device in devices:
            held.enter_context(beside(device))
        return replace(runtime, device=devices[0].name) if devices else runtime

    return claim


def _write_results(store: Store, run: Run) -> None:
    """Write the results' database and the report; a second time if gc deleted what they were reading."""
    from tasks.catalog.database import build_catalog
    from tasks.report import write_report

    for last_try in (False, True):
        try:
            build_catalog(store, ending=run.record)
            write_report(store, run.run_id, ending=run.record)
            return
        except ValueError:
            if last_try:
                raise
