"""Turns a plain function into a cached, locked, resumable stage over the store, and into a Prefect task in a flow.

    @stage
    def score(build: Build, corpus: Artifact, teacher: Artifact, settings: ScoreSettings) -> None: ...

    with open_run(store, name="mine") as run:
        outputs = score(corpus=corpus, teacher=teacher, settings=settings)   # -> Artifact: a hit, or built here
        second = train.labelled("2")(student=first)     # shown as train[2]; the label is no part of the key

Under `planning=True` the same calls build nothing and say of each stage whether it would be a hit, and if not, why.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.engine.engines import engine_of
from tasks.engine.local import Engine, Local
from tasks.engine.machine import COMPUTING, machine, versions
from tasks.engine.settings import RuntimeSettings
from tasks.messages import first_line
from tasks.store.artifacts import MANIFEST, Artifact, FileRecord, Manifest, Store, StoreError
from tasks.store.checkpoints import Checkpoints
from tasks.store.files import stamp
from tasks.store.keys import KeyRecord, explain, in_short, inputs_of, key_of, key_record
from tasks.store.prefect_task import as_prefect_task
from tasks.store.progress import NullReporter, Reporter
from tasks.store.quarantine import contents_of, make_room, problem_of
from tasks.store.runs import DISTILL, RunRecord, StageRun, end_parts, utc_now
from tasks.store.shards import Shards


@dataclass(frozen=True)
class PlanRow:
    """What would become of one stage: hit, miss or damaged, and why."""

    stage: str
    key: str
    status: str
    reasons: Sequence[str] = ()

    @property
    def why(self) -> str:
        """The reasons in a line."""
        return in_short(self.reasons)


@dataclass
class Run:
    """One run under way (or planned): its store, its record, and whom it tells."""

    store: Store
    record: RunRecord
    runtime: RuntimeSettings
    reporter: Reporter
    planning: bool = False
    plan: list[PlanRow] = field(default_factory=list)
    cell: str = ""  # of a comparison: which of its runs the stages now serve
    untracked: set[str] = field(default_factory=set)  # trackers that have failed: said once, and not tried again
    said: set[str] = field(default_factory=set)  # what was warned of for the whole run
    claim: Callable[[RuntimeSettings], RuntimeSettings] = lambda runtime: runtime  # waits for a device before a build
    engine: Engine | None = None  # that shares shards out; None = this process makes them

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

    def warn_once(self, text: str) -> None:
        """Say something that must be read of this run, and of nothing that it makes: not for each stage again."""
        if text not in self.said:
            self.said.add(text)
            self.reporter.warning(text)

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
    part_of: str = "",
) -> Iterator[Run]:
    """A run, recorded at its start, after each stage and at its end. A plan is recorded nowhere.

    `part_of` names the run whose work this process does. Raises StoreError where the store's disk cannot be used, and
    ValueError where the engine cannot be had.
    """
    record = RunRecord.start(name, parameters or {}, flow)
    record.part_of = part_of
    run = Run(store, record, runtime or RuntimeSettings(), reporter or NullReporter(), planning)
    with ExitStack() as open_while_it_goes:
        if not planning:
            open_while_it_goes.enter_context(record.going_on(store))
            store.check_disk()
            engine = engine_of(run.runtime, store.root, run.reporter.warning)
            run.engine = open_while_it_goes.enter_context(engine)
            record.save(store)
        token = _current.set(run)
        try:
            yield run
            if record.state == "running":
                record.end("completed")
        except BaseException as error:
            record.end("failed", first_line(error))
            raise
        finally:
            _current.reset(token)
            run.reporter.close()
            if not planning:
                _save_end(run)


def _save_end(run: Run) -> None:
    try:
        run.record.save(run.store)
    except OSError as error:  # a full disk: the reason the run failed must not be hidden by this one
        run.reporter.warning(f"the record of {run.run_id} could not be written: {error}")
        return
    if run.record.state == "completed":
        end_parts(run.store, run.run_id)


class Build:
    """What a stage's function is given: where to write, what to go on from, whom to tell."""

    def __init__(self, run: Run, artifact: Artifact, directory: Path, name: str, settings: dict[str, Any]) -> None:
        self.stage, self.settings = name, settings  # as it is shown, its label included; as its key has them
        self.dir, self.run, self.runtime = directory, run, run.runtime
        self.engine = run.engine or Local(run.runtime)
        self.stats: dict[str, Any] = {}
        self.store_root, self._reporter = run.store.root, run.reporter
        where, seconds = run.store.checkpoint_dir(artifact), run.runtime.checkpoint_seconds
        self.checkpoints = Checkpoints(run.store, where, seconds, run.reporter.warning)
        self.shards = Shards(self.checkpoints.dir, self.dir, run.reporter.warning)

    def progress(self, done: float, total: float, unit: str = "", **metrics: float) -> None:
        """Tell how far the stage is, and its metrics as they stand."""
        self._reporter.stage_progress(self.stage, done, total, unit, metrics)

    def record(self, **stats: float | int | str | list[int] | list[float]) -> None:
        """Write numbers down in the manifest."""
        self.stats |= stats

    def warn(self, text: str) -> None:
        """Say something that must be read, now and in the manifest."""
        self._reporter.warning(text)
        self.stats.setdefault("warnings", []).append(text)


class Stage:
    """A stage function over the store of the current run."""

    def __init__(self, function: Callable[..., None], label: str = "") -> None:
        self.function, self.name, self.label, self.__doc__ = function, function.__name__, label, function.__doc__
        self.shown = f"{self.name}[{label}]" if label else self.name

    def labelled(self, label: str) -> "Stage":
        """The same stage, told apart from others of its kind in what is shown and recorded: the round, the system."""
        return Stage(self.function, label)

    def __call__(self, **arguments: Any) -> Artifact:
        """The stage's artifact for these arguments: found, waited for, or built. Raises RuntimeError outside a run."""
        run = current_run()
        record = key_record(self.name, self.function, arguments)
        artifact = run.store.artifact(self.name, key_of(record))
        if run.planning:
            run.plan.append(self._plan(run, artifact, record, arguments))
            return artifact
        return as_prefect_task(self.shown, lambda: self._resolve(run, artifact, record, arguments))

    def _plan(self, run: Run, artifact: Artifact, record: KeyRecord, arguments: dict[str, Any]) -> PlanRow:
        if not artifact.path.exists():
            return PlanRow(self.shown, artifact.key, "miss", explain(run.store, self.name, record))
        problem = problem_of(run.store, artifact, inputs_of(arguments))
        if problem is not None:
            return PlanRow(self.shown, artifact.key, "damaged", [problem])
        return PlanRow(self.shown, artifact.key, "hit", _remarks(artifact.manifest()))

    def _resolve(self, run: Run, artifact: Artifact, record: KeyRecord, arguments: dict[str, Any]) -> Artifact:
        """Find it or build it. The key's lock is held until the use is recorded, so that nobody takes it away before.

        Those who find it hold the lock together; what is not there, or not whole, is looked at again by whoever holds
        it alone.
        """
        begun, inputs = time.monotonic(), inputs_of(arguments)
        with run.store.try_lock(artifact, shared=True) as held:
            if held and artifact.path.exists() and problem_of(run.store, artifact, inputs) is None:
                return self._used(run, artifact, "hit", begun)
        # before the key's lock: who has a device may wait for a key, who has a key never waits for a device
        run.runtime, begun = run.claim(run.runtime), time.monotonic()
        waiting = f"{self.shown} {artifact.key[:8]} is being built by"
        with run.store.lock(artifact, lambda who: run.reporter.warning(f"{waiting} {who}; waiting")) as waited:
            there = artifact.path.exists()
            problem = (
                problem_of(run.store, artifact, inputs) if there else in_short(explain(run.store, self.name, record))
            )
            if problem is None:
                return self._used(run, artifact, "waited" if waited else "hit", begun)
            if there:
                for moved in make_room(run.store, artifact, problem):
                    run.reporter.warning(str(moved))
            run.reporter.stage_started(self.shown, artifact.key, problem)
            self._build(run, artifact, record, arguments)
            return self._used(run, artifact, "built", begun, problem)

    def _used(self, run: Run, artifact: Artifact, outcome: str, begun: float, why: str = "") -> Artifact:
        finished = StageRun(self.name, artifact.key, outcome, time.monotonic() - begun, why, self.label, run.cell)
        run.stages.append(finished)
        run.record.save(run.store)
        run.store.touch(artifact)  # last: `distill gc` sees by it that the record says more than it has read
        run.reporter.stage_finished(finished)
        return artifact

    def _build(self, run: Run, artifact: Artifact, record: KeyRecord, arguments: dict[str, Any]) -> None:
        begun, inputs = time.monotonic(), inputs_of(arguments)
        contents, suspect = contents_of(run.store, inputs), run.store.suspect(artifact)
        versions_read = [stamp(each.path / MANIFEST) for each in inputs.values()]
        with run.store.staging(artifact) as staged:
            build = Build(run, artifact, staged, self.shown, record["settings"])
            build.checkpoints.claim([each.key for each in inputs.values()], contents, suspect=suspect.exists())
            suspect.unlink(missing_ok=True)
            try:
                self.function(build, **arguments)
            except Exception:
                contents_of(run.store, inputs)  # what a damaged input leads to is told as that
                raise
            contents_of(run.store, inputs)
            if suspect.exists() or versions_read != [stamp(each.path / MANIFEST) for each in inputs.values()]:
                suspect.touch()
                raise StoreError(f"what {self.shown} read was damaged, or built anew, meanwhile\nrun again")

            def describe(files: dict[str, FileRecord]) -> Manifest:
                build.shards.check(files)
                return Manifest(
                    stage=self.name,
                    key=artifact.key,
                    key_record=record,
                    files=files,
                    stats=build.stats,
                    seconds=time.monotonic() - begun,
                    created=utc_now(),
                    versions=versions(),
                    machine=machine(run.runtime.device, run.runtime.threads) | build.engine.about,
                    inputs=contents,
                )

            run.store.commit(artifact, staged, describe)


def _remarks(manifest: Manifest) -> list[str]:
    """What should be known of a hit: that other versions of the libraries that compute have built it, or other code."""
    was, now = manifest.versions, versions()
    remarks = [f"built with {it} {was[it]}, now {now[it]}" for it in COMPUTING if was.get(it, now[it]) != now[it]]
    return remarks + [f"code accepted on {each['at'][:10]}" for each in manifest.accepted[-1:]]


def stage(function: Callable[..., None]) -> Stage:
    """Make a stage of a function whose first parameter is its `Build`."""
    return Stage(function)
