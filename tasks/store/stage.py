"""Turns a plain function into a cached, locked, resumable stage over the store, and into a Prefect task in a flow.

    @stage
    def score(build: Build, corpus: Artifact, teacher: Artifact, settings: ScoreSettings) -> None: ...

    with open_run(store, name="mine") as run:
        outputs = score(corpus=corpus, teacher=teacher, settings=settings)   # -> Artifact: a hit, or built here
        second = train.labelled("2")(student=first)     # shown as train[2]; the label is no part of the key

Under `planning=True` the same calls build nothing and say of each stage whether it would be a hit, and if not, why.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

from tasks.engine.engines import engine_of
from tasks.engine.group import WorkerDiedError
from tasks.engine.local import Team
from tasks.engine.machine import COMPUTING, machine, versions
from tasks.engine.settings import RuntimeSettings
from tasks.messages import first_line
from tasks.store.artifacts import MANIFEST, Artifact, FileRecord, Manifest, Store, StoreError
from tasks.store.build import Build, Call, PlanRow, Run, run_rank
from tasks.store.files import stamp
from tasks.store.keys import KeyRecord, explain, in_short, inputs_of, key_of, key_record
from tasks.store.prefect_task import as_prefect_task
from tasks.store.progress import NullReporter, Reporter
from tasks.store.quarantine import contents_of, make_room, problem_of
from tasks.store.runs import DISTILL, RunRecord, StageRun, end_parts, utc_now

__all__ = ["Build", "PlanRow", "Run", "Stage", "current_run", "open_run", "stage", "trains"]

ATTEMPTS = 3  # deaths without a new checkpoint between them, until a stage is given up
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


Trains = Callable[[Mapping[str, Any]], bool]  # whether a stage that is called with these arguments trains


class Stage:
    """A stage function over the store of the current run."""

    def __init__(self, function: Callable[..., None], label: str = "", trains: Trains = lambda _: False) -> None:
        self.function, self.name, self.label, self.__doc__ = function, function.__name__, label, function.__doc__
        self.trains = trains
        self.shown = f"{self.name}[{label}]" if label else self.name

    def labelled(self, label: str) -> "Stage":
        """The same stage, told apart from others of its kind in what is shown and recorded: the round, the system."""
        return Stage(self.function, label, self.trains)

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
        problem = problem_of(run.store, artifact, inputs_of(arguments)) if artifact.path.exists() else None
        if not artifact.path.exists():
            status, reasons = "miss", explain(run.store, self.name, record)
        elif problem is not None:
            status, reasons = "damaged", [problem]
        else:
            status, reasons = "hit", _remarks(artifact.manifest())
        return PlanRow(self.shown, artifact.key, status, reasons, self.trains(arguments))

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
            self._build(run, artifact, record, arguments, problem)
            return self._used(run, artifact, "built", begun, problem)

    def _used(self, run: Run, artifact: Artifact, outcome: str, begun: float, why: str = "") -> Artifact:
        finished = StageRun(self.name, artifact.key, outcome, time.monotonic() - begun, why, self.label, run.cell)
        run.stages.append(finished)
        run.record.save(run.store)
        run.store.touch(artifact)  # last: `distill gc` sees by it that the record says more than it has read
        run.reporter.stage_finished(finished)
        return artifact

    def _build(self, run: Run, artifact: Artifact, record: KeyRecord, arguments: dict[str, Any], why: str) -> None:
        begun, inputs = time.monotonic(), inputs_of(arguments)
        contents, suspect = contents_of(run.store, inputs), run.store.suspect(artifact)
        versions_read = [stamp(each.path / MANIFEST) for each in inputs.values()]
        with run.store.staging(artifact) as staged:
            build = Build(run, artifact, staged, self.shown, record["settings"])
            build.checkpoints.claim([each.key for each in inputs.values()], contents, suspect=suspect.exists())
            suspect.unlink(missing_ok=True)
            run.reporter.stage_started(self.shown, artifact.key, "; ".join(filter(None, (why, build.checkpoints.left))))
            try:
                made_by = self._make(build, arguments)
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
                    machine=machine(run.runtime.device, run.runtime.threads) | made_by,
                    inputs=contents,
                )

            run.store.commit(artifact, staged, describe)

    def _make(self, build: Build, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run the function: here, or by all workers of a cluster. Returns what a manifest records of who that was."""
        run, team = build.run, build.run.engine
        if team is None or not self.trains(arguments):
            # a first rank whose driver was killed may not have died yet
            with build.checkpoints.alone() if self.trains(arguments) else nullcontext():
                self.function(build, **arguments)
            return build.engine.about
        where = self.function.__module__, self.name
        call = Call(*where, arguments, run.travelling(), build.artifact, build.dir, self.shown, build.settings)
        return team.about | {"workers": _together(build, team, call)}


def _together(build: Build, team: Team, call: Call) -> int:
    """Run a stage's function by all workers, from the last checkpoint on whenever one dies; returns how many they were.

    Raises what the function raises, and ChildProcessError where too many have died without a new checkpoint.
    """
    deaths, in_all, newest = 0, 0, build.checkpoints.newest()
    while True:
        try:
            return team.together(partial(run_rank, replace(call, run=build.run.travelling())), build.hear)
        except WorkerDiedError as error:
            before, newest = newest, build.checkpoints.newest()
            deaths, in_all = deaths + 1 if newest == before else 1, in_all + 1
            if deaths >= ATTEMPTS:
                raise ChildProcessError(
                    f"{build.stage} has lost {deaths} workers without a checkpoint between: {first_line(error)}\n"
                    "what is finished is kept: distill resume; smaller batches take less memory, and a smaller "
                    "runtime.checkpoint_seconds loses less"
                ) from error
            where = f"the checkpoint after step {newest}" if newest else "the start"
            count = f" (the {in_all}th time)" if in_all > 3 else ""
            build.run.reporter.warning(f"a worker has died{count}: {first_line(error)}; all go on from {where}")


def _remarks(manifest: Manifest) -> list[str]:
    """What should be known of a hit: that other versions of the libraries that compute have built it, or other code."""
    was, now = manifest.versions, versions()
    remarks = [f"built with {it} {was[it]}, now {now[it]}" for it in COMPUTING if was.get(it, now[it]) != now[it]]
    return remarks + [f"code accepted on {each['at'][:10]}" for each in manifest.accepted[-1:]]


def stage(function: Callable[..., None]) -> Stage:
    """Make a stage of a function whose first parameter is its `Build`."""
    return Stage(function)


def trains(when: Trains = lambda _: True) -> Callable[[Stage], Stage]:
    """Make of a stage one that trains: by all workers of a cluster together, where the run's engine is one."""
    return lambda made: Stage(made.function, made.label, when)
