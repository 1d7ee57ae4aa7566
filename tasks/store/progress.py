"""What a run says while it goes: a live table on a terminal, plain lines elsewhere.

It never breaks the run it reports on.
"""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from tasks.formatting import clock
from tasks.store.runs import StageRun

LINE_SECONDS = 5.0


class Reporter(Protocol):
    """What a stage tells while it works."""

    def stage_started(self, stage: str, key: str, why: str) -> None:
        """A stage is about to be built, because of `why`."""

    def stage_progress(self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]) -> None:
        """`done` of `total` units, and the metrics as they stand."""

    def stage_finished(self, stage: StageRun) -> None:
        """A stage was a hit, was waited for, or is built."""

    def warning(self, text: str) -> None:
        """Something that must be read."""

    def close(self) -> None:
        """The run is over."""


class NullReporter:
    """Says nothing."""

    def stage_started(self, stage: str, key: str, why: str) -> None: ...
    def stage_progress(
        self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]
    ) -> None: ...
    def stage_finished(self, stage: StageRun) -> None: ...
    def warning(self, text: str) -> None: ...
    def close(self) -> None: ...


@dataclass
class Meter:
    """Progress of one stage, with its rate and the time that is left."""

    begun: float = field(default_factory=time.monotonic)
    first_done: float | None = None  # where this process began: a resumed stage does not claim the work before it
    first_at: float = 0.0
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    def update(self, done: float, total: float, unit: str, metrics: Mapping[str, float]) -> None:
        """Take in what a stage has told."""
        if self.first_done is None or unit != self.unit or done < self.first_done:
            self.first_done, self.first_at = done, time.monotonic()
        self.done, self.total, self.unit = done, total, unit
        self.metrics |= metrics

    @property
    def rate(self) -> float:
        """Units a second since this process began on them; 0 while unknown."""
        elapsed = time.monotonic() - self.first_at
        return (self.done - (self.first_done or 0.0)) / elapsed if elapsed > 0.5 else 0.0

    def text(self) -> str:
        """`120/400 steps  3.1/s  1:30 left`."""
        parts = [f"{self.done:,.0f}/{self.total:,.0f} {self.unit}".strip()]
        if self.rate > 0:
            parts.append(f"{self.rate:,.1f}/s")
            parts.append(f"{clock((self.total - self.done) / self.rate)} left")
        return "  ".join(parts)

    def metrics_text(self) -> str:
        """`loss 1.234  reward 0.56`."""
        return "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())


class PlainReporter:
    """A line when a stage starts and ends, and at most every few seconds in between."""

    def __init__(self, stream: TextIO | None = None, every_seconds: float = LINE_SECONDS) -> None:
        self._stream, self._every = stream, every_seconds
        self._meters: dict[str, Meter] = {}
        self._said = 0.0

    def stage_started(self, stage: str, key: str, why: str) -> None:
        self._meters[stage], self._said = Meter(), time.monotonic()
        self._say(f"{stage}: started" + (f" ({why})" if why else ""))

    def stage_progress(self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]) -> None:
        meter = self._meters.setdefault(stage, Meter())
        meter.update(done, total, unit, metrics)
        if time.monotonic() - self._said >= self._every:
            self._said = time.monotonic()
            self._say(f"{stage}: {meter.text()}  {meter.metrics_text()}".rstrip())

    def stage_finished(self, stage: StageRun) -> None:
        self._say(f"{stage.name}: {stage.outcome} in {stage.seconds:.1f} s")

    def warning(self, text: str) -> None:
        self._say(f"WARNING: {text}")

    def close(self) -> None:
        """Nothing is held open."""

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a closed pipe must not end the run
            print(text, file=self._stream or sys.stdout, flush=True)


class LiveReporter:
    """A table of stages that redraws itself: state, progress, rate, time left, the metrics as they move."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._rows: dict[str, tuple[str, Meter]] = {}
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._table)
        self._quietly(self._live.start)

    def stage_started(self, stage: str, key: str, why: str) -> None:
        self._rows[stage] = ("running", Meter())

    def stage_progress(self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]) -> None:
        _, meter = self._rows.setdefault(stage, ("running", Meter()))
        meter.update(done, total, unit, metrics)

    def stage_finished(self, stage: StageRun) -> None:
        _, meter = self._rows.get(stage.name, ("", Meter()))
        self._rows[stage.name] = (f"{stage.outcome} {stage.seconds:.1f} s", meter)

    def warning(self, text: str) -> None:
        from rich.text import Text

        self._quietly(lambda: self._console.print(Text(f"WARNING: {text}", style="bold yellow")))

    def close(self) -> None:
        self._quietly(self._live.stop)

    def _table(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, expand=False)
        for name, width in (("stage", 12), ("state", 14), ("", 16), ("progress", 44)):
            table.add_column(name, min_width=width, header_style="dim")
        for stage, (state, meter) in self._rows.items():
            running = state == "running"
            shown = f"running {clock(time.monotonic() - meter.begun)}" if running else state
            bar = ProgressBar(meter.total or 1, meter.done, width=16) if running else Text("")
            detail = (
                f"{meter.text()}\n{meter.metrics_text()}".strip() if running and meter.total else meter.metrics_text()
            )
            style = "bold" if running else "green"
            table.add_row(Text(stage, style="bold" if running else ""), Text(shown, style=style), bar, Text(detail))
        return table

    @staticmethod
    def _quietly(call: Callable[[], Any]) -> None:
        with suppress(OSError, ValueError):
            call()


def default_reporter() -> Reporter:
    """Live where somebody watches, plain lines elsewhere."""
    try:
        return LiveReporter() if sys.stdout.isatty() else PlainReporter()
    except ValueError:  # stdout is closed
        return NullReporter()
