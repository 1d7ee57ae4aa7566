"""A run under way, and what a stage's function is given: its build. On a cluster, the build of one of several ranks.

A stage that trains is run by all workers of a cluster together: each calls the stage's function, with the same
arguments and a build of its own. That of the first rank writes and tells what a build on one machine writes and tells;
those of the others read the same checkpoints, and what they write and tell goes nowhere. What a function writes for the
others to read, in shards or beside checkpoints, the first rank writes before they look (`Ranks.first_alone`).
"""

import importlib
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from tasks.engine.group import Seat
from tasks.engine.local import Engine, Local, Team
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Artifact, Store
from tasks.store.checkpoints import Checkpoints
from tasks.store.keys import in_short
from tasks.store.progress import NullReporter, Reporter
from tasks.store.runs import RunRecord, StageRun
from tasks.store.shards import Shards, wait_for

TELL_SECONDS = 0.1  # between two looks at what there is to tell


@dataclass(frozen=True)
class PlanRow:
    """What would become of one stage: hit, miss or damaged, and why."""

    stage: str
    key: str
    status: str
    reasons: Sequence[str] = ()
    trains: bool = False

    @property
    def why(self) -> str:
        """The reasons in a line."""
        return in_short(self.reasons)


def as_it_is(runtime: RuntimeSettings) -> RuntimeSettings:
    """The runtime."""
    return runtime


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
    claim: Callable[[RuntimeSettings], RuntimeSettings] = as_it_is  # waits for a device before a build
    engine: Team | None = None  # that shares shards out, and trains; None = this process does

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

    def travelling(self) -> "Run":
        """What of it can travel to another process: it tells nobody there, and has no engine."""
        return replace(self, reporter=NullReporter(), plan=[], claim=as_it_is, engine=None)

    def warn_once(self, text: str) -> None:
        """Say something that must be read of this run, and of nothing that it makes: not for each stage again."""
        if text not in self.said:
            self.said.add(text)
            self.reporter.warning(text)

    @property
    def stages(self) -> list[StageRun]:
        """The stages so far."""
        return self.record.stages


class Build:
    """What a stage's function is given: where to write, what to go on from, whom to tell."""

    def __init__(self, run: Run, artifact: Artifact, directory: Path, name: str, settings: dict[str, Any]) -> None:
        self.stage, self.settings = name, settings  # as it is shown, its label included; as its key has them
        self.artifact, self.dir, self.run, self.runtime = artifact, directory, run, run.runtime
        self.engine: Engine = run.engine or Local(run.runtime)
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

    def warn(self, text: str, *, again: bool = False) -> None:
        """Say something that must be read, now and in the manifest; `again`, where an earlier run has said it too."""
        self._reporter.warning(f"as said before: {text}" if again else text)
        self.stats.setdefault("warnings", []).append(text)

    def hear(self, news: "News") -> None:
        """Take over what the first rank tells."""
        for text in news.warnings:
            self._reporter.warning(text)
        if news.progress is not None:
            self._reporter.stage_progress(*news.progress)
        self.stats = news.stats
        self.run.said |= news.said
        self.run.untracked |= news.untracked
        self.shards.collected = news.collected
        for name, size in news.files.items():
            wait_for(self.dir / name, size)


@dataclass(frozen=True)
class Call:
    """A stage's function with its arguments, and the build that it is for, as they travel to the ranks."""

    module: str
    name: str  # of the stage, in its module
    arguments: Mapping[str, Any]
    run: Run
    artifact: Artifact
    directory: Path
    shown: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class News:
    """What the first rank has to tell: what is new, and how its records stand."""

    warnings: Sequence[str]
    progress: tuple[Any, ...] | None
    stats: dict[str, Any]
    said: set[str]
    untracked: set[str]
    collected: dict[str, str]
    files: dict[str, int]  # what it has written in the build's directory, with sizes; once it is done


def run_rank(call: Call, runtime: RuntimeSettings, seat: Seat) -> Iterator[News]:
    """Run a stage's function as one of its ranks; the first one's yields what there is to tell."""
    is_first, line, failures = seat.rank == 0, _Line(), list[BaseException]()
    with ExitStack() as held:
        if is_first:
            run, directory = replace(call.run, runtime=runtime, reporter=line), call.directory
        else:  # its run tells nobody
            run = replace(call.run, runtime=replace(runtime, track=()))
            directory = Path(held.enter_context(TemporaryDirectory()))
        build = Build(run, call.artifact, directory, call.shown, call.settings)
        function = getattr(importlib.import_module(call.module), call.name).function

        def work() -> None:
            try:
                # a first rank of before may not have died yet
                with build.checkpoints.alone() if is_first else nullcontext():
                    for left in directory.iterdir():  # by that one
                        shutil.rmtree(left) if left.is_dir() else left.unlink()
                    function(build, **call.arguments)
            except BaseException as error:
                failures.append(error)

        thread, goes_on = Thread(target=work, daemon=True), True
        thread.start()
        while goes_on:
            thread.join(TELL_SECONDS)
            goes_on = thread.is_alive()
            if is_first and (line.has_news or not goes_on):
                yield line.news(build, done=not goes_on and not failures)
    if failures:
        raise failures[0]


class _Line(NullReporter):
    """Keeps what is told until it is passed on: all warnings, and the last word on progress."""

    def __init__(self) -> None:
        self._warnings, self._progress = deque[str](), deque[tuple[Any, ...]](maxlen=1)

    def stage_progress(self, *told: Any) -> None:
        self._progress.append(told)

    def warning(self, text: str) -> None:
        self._warnings.append(text)

    @property
    def has_news(self) -> bool:
        """Whether there is something that was not passed on yet."""
        return bool(self._warnings or self._progress)

    def news(self, build: Build, *, done: bool) -> News:
        """What was not passed on yet, and what the build has written down."""
        warnings = [self._warnings.popleft() for _ in range(len(self._warnings))]
        progress = self._progress.popleft() if self._progress else None
        paths = [path for path in build.dir.rglob("*") if path.is_file()] if done else []
        files = {path.relative_to(build.dir).as_posix(): path.stat().st_size for path in paths}
        run, collected = build.run, build.shards.collected.copy()
        return News(warnings, progress, build.stats.copy(), run.said.copy(), run.untracked.copy(), collected, files)
