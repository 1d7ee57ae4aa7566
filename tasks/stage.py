"""Turns a plain function into a cached, locked, resumable stage over the store, and into a Prefect task in a flow.

    @stage
    def score(build: Build, corpus: Artifact, teacher: Artifact, settings: ScoreSettings) -> None: ...

    with open_run(store, name="mine") as run:
        outputs = score(corpus=corpus, teacher=teacher, settings=settings)   # -> Artifact: a hit, or built here
        second = train.labelled("2")(student=first)     # shown as train[2]; the label is no part of the key

Under `planning=True` the same calls build nothing and say of each stage whether it would be a hit, and if not, why.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.checkpoints import Checkpoints
from tasks.keys import KeyRecord, explain, key_of, key_record
from tasks.machine import machine, versions
from tasks.progress import NullReporter, Reporter
from tasks.runs import DISTILL, RunRecord, StageRun, utc_now
from tasks.store import Artifact, FileRecord, Manifest, Store


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Where and how a run computes. In no stage's key: it changes no result beyond the last bits of a float."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int | None = None  # CPU threads; None = torch's choice. Byte-identical results need the same number
    checkpoint_seconds: float = 30.0  # between two checkpoints; 0 = after every step

    def __post_init__(self) -> None:
        if self.device != "auto" and self.device.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {self.device!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.checkpoint_seconds < 0:
            raise ValueError(f"checkpoint_seconds must be 0 or more, got {self.checkpoint_seconds}")


@dataclass(frozen=True)
class PlanRow:
    """What would become of one stage: hit, miss or damaged, and why."""

    stage: str
    key: str
    status: str
    why: str


@dataclass
class Run:
    """One run under way (or planned): its store, its record, and whom it tells."""

    store: Store
    record: RunRecord
    runtime: RuntimeSettings
    reporter: Reporter
    planning: bool = False
    recorded: bool = True
    plan: list[PlanRow] = field(default_factory=list)
    cell: str = ""  # of a comparison: which of its runs the stages now serve

    @property
    def run_id(self) -> str:
        """Names the run in runs/, in results.duckdb and in what is printed."""
        return self.record.run_id

    @contextmanager
    def serving(self, cell: str) -> Iterator[None]:
        """The stages that are called inside serve this cell of a comparison."""
        before, self.cell = self.cell, cell
        try:
            yield
        finally:
            self.cell = before

    @property
    def stages(self) -> list[StageRun]:
        """The stages so far."""
        return self.record.stages


_current: ContextVar[Run | None] = ContextVar("run", default=None)


def current_run() -> Run:
    """The run whose stages are called here. Raises RuntimeError outside of `open_run`."""
    run = _current.get()
    if run is None:
        raise RuntimeError("a stage was called outside open_run")
    return run


@contextmanager
def open_run(
    store: Store,
    *,
    name: str,
    flow: str = DISTILL,
    parameters: dict[str, Any] | None = None,
    runtime: RuntimeSettings | None = None,
    reporter: Reporter | None = None,
    planning: bool = False,
    recorded: bool = True,
) -> Iterator[Run]:
    """A run, recorded at its start, after each stage and at its end. A plan is recorded nowhere."""
    record = RunRecord.start(name, parameters or {}, flow)
    recorded = recorded and not planning
    run = Run(store, record, runtime or RuntimeSettings(), reporter or NullReporter(), planning, recorded)
    if recorded:
        record.save(store)
    token = _current.set(run)
    try:
        yield run
        record.state = "completed"
    except BaseException as error:
        record.state, record.error = "failed", first_line(error)
        raise
    finally:
        _current.reset(token)
        run.reporter.close()
        if recorded:
            _save_end(run)


def _save_end(run: Run) -> None:
    run.record.finished = utc_now()
    try:
        run.record.save(run.store)
    except OSError as error:  # a full disk: the reason the run failed must not be hidden by this one
        run.reporter.warning(f"the record of {run.run_id} could not be written: {error}")


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class Build:
    """What a stage's function is given: where to write, what to go on from, whom to tell."""

    def __init__(self, run: Run, artifact: Artifact, directory: Path, name: str) -> None:
        self.stage = name  # as it is shown, its label included
        self.dir, self.runtime = directory, run.runtime
        self.stats: dict[str, Any] = {}
        self.store_root = run.store.root
        self._reporter = run.reporter
        self.checkpoints = Checkpoints(
            run.store, run.store.checkpoint_dir(artifact), run.runtime.checkpoint_seconds, run.reporter.warning
        )

    def progress(self, done: float, total: float, unit: str = "", **metrics: float) -> None:
        """Tell how far the stage is, and its metrics as they stand."""
        self._reporter.stage_progress(self.stage, done, total, unit, metrics)

    def record(self, **stats: float | int | str) -> None:
        """Write numbers down in the manifest."""
        self.stats |= stats

    def warn(self, text: str) -> None:
        """Say something that must be read, now and in the manifest."""
        self._reporter.warning(text)
        self.stats.setdefault("warnings", []).append(text)


class Stage:
    """A stage function over the store of the current run."""

    def __init__(self, function: Callable[..., None], label: str = "") -> None:
        self.function, self.name, self.__doc__ = function, function.__name__, function.__doc__
        self.label = label
        self.shown = f"{self.name}[{label}]" if label else self.name

    def labelled(self, label: str) -> "Stage":
        """The same stage, told apart from others of its kind in what is shown and recorded: the round, the system."""
        return Stage(self.function, label)

    def __call__(self, **arguments: Any) -> Artifact:
        """The stage's artifact for these arguments: found, waited for, or built. Raises RuntimeError outside a run."""
        run = current_run()
        record = key_record(self.name, self.function.__module__, arguments)
        artifact = run.store.artifact(self.name, key_of(record))
        if run.planning:
            run.plan.append(self._plan(run, artifact, record))
            return artifact
        return _as_prefect_task(self.shown, lambda: self._resolve(run, artifact, record, arguments))

    def _plan(self, run: Run, artifact: Artifact, record: KeyRecord) -> PlanRow:
        if not artifact.path.exists():
            return PlanRow(self.shown, artifact.key, "miss", explain(run.store, self.name, record))
        damage = run.store.damage(artifact)
        return PlanRow(self.shown, artifact.key, "damaged" if damage else "hit", damage or "")

    def _resolve(self, run: Run, artifact: Artifact, record: KeyRecord, arguments: dict[str, Any]) -> Artifact:
        begun, outcome, why = time.monotonic(), "hit", ""
        if not _is_whole(run.store, artifact):
            waiting = f"{self.shown} {artifact.key[:8]} is being built by"
            with run.store.lock(artifact, lambda who: run.reporter.warning(f"{waiting} {who}; waiting")) as waited:
                if waited and _is_whole(run.store, artifact):
                    outcome = "waited"
                else:
                    outcome, why = "built", _reason(run, artifact, record)
                    run.reporter.stage_started(self.shown, artifact.key, why)
                    self._build(run, artifact, record, arguments)
        seconds = time.monotonic() - begun
        finished = StageRun(self.name, artifact.key, outcome, seconds, why, self.label, run.cell)
        run.stages.append(finished)
        if run.recorded:
            run.record.save(run.store)
        run.reporter.stage_finished(finished)
        return artifact

    def _build(self, run: Run, artifact: Artifact, record: KeyRecord, arguments: dict[str, Any]) -> None:
        begun = time.monotonic()
        with run.store.staging(artifact) as staged:
            build = Build(run, artifact, staged, self.shown)
            self.function(build, **arguments)

            def describe(files: dict[str, FileRecord]) -> Manifest:
                return Manifest(
                    stage=self.name,
                    key=artifact.key,
                    key_record=record,
                    files=files,
                    stats=build.stats,
                    seconds=time.monotonic() - begun,
                    created=utc_now(),
                    versions=versions(),
                    machine=machine(run.runtime.device, run.runtime.threads),
                )

            run.store.commit(artifact, staged, describe)


def stage(function: Callable[..., None]) -> Stage:
    """Make a stage of a function whose first parameter is its `Build`."""
    return Stage(function)


def _is_whole(store: Store, artifact: Artifact) -> bool:
    return artifact.path.exists() and store.damage(artifact) is None


def _reason(run: Run, artifact: Artifact, record: KeyRecord) -> str:
    """Why this build is needed. A damaged artifact is named and moved aside first."""
    if not artifact.path.exists():
        return explain(run.store, artifact.stage, record)
    damage = run.store.damage(artifact)
    moved = run.store.set_aside(artifact.path)
    run.reporter.warning(
        f"{artifact.stage} {artifact.key[:8]} is damaged: {damage}; moved to {moved}, building it anew"
    )
    return f"damaged: {damage}"


def _as_prefect_task(name: str, body: Callable[[], Artifact]) -> Artifact:
    """Run the body as a Prefect task inside a flow run, plainly elsewhere.

    Prefect caches nothing: the manifest is the truth. A user's mistake fails the task with its one line, no traceback.
    """
    if "prefect" not in sys.modules:
        return body()
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.client.schemas.objects import State
    from prefect.context import FlowRunContext
    from prefect.states import Failed

    if FlowRunContext.get() is None:
        return body()
    mistakes: list[Exception] = []

    def recorded() -> Artifact | State[Any]:
        try:
            return body()
        except (ValueError, OSError) as error:
            mistakes.append(error)
            return Failed(message=first_line(error))

    state: State[Any] = task(name=name, cache_policy=NO_CACHE, persist_result=False)(recorded)(return_state=True)
    if mistakes:
        raise mistakes[0]
    artifact: Artifact = state.result()
    return artifact
