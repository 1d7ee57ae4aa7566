"""What a run says while it goes; whatever becomes of the terminal, the run goes on."""

import io

import pytest
from rich.console import Console

from tasks.store import progress
from tasks.store.progress import LiveReporter, Meter, PlainReporter
from tasks.store.runs import StageRun

DONE = StageRun("llmr", "key", "built", 12.34)


def test_plain_lines_say_stage_progress_rate_and_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    reporter = PlainReporter(stream, every_seconds=5)
    reporter.stage_started("llmr", "key", "setting: steps 1 → 2")
    for step in range(1, 101):
        now[0] += 0.125
        reporter.stage_progress("llmr", step, 400, "steps", {"reward": step / 100})
    reporter.warning("look here")
    reporter.stage_finished(DONE)
    assert stream.getvalue().splitlines() == [
        "llmr: started (setting: steps 1 → 2)",
        "llmr: 40/400 steps  8.0/s  0:45 left  reward 0.4",
        "llmr: 80/400 steps  8.0/s  0:40 left  reward 0.8",
        "WARNING: look here",
        "llmr: built in 12.3 s",
    ]


def test_a_resumed_stage_claims_no_rate_for_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    meter = Meter(begun=0.0)
    meter.update(300, 400, "steps", {})
    now[0] = 10.0
    meter.update(320, 400, "steps", {})
    assert meter.rate == pytest.approx(2.0)
    assert meter.text() == "320/400 steps  2.0/s  0:40 left"


def test_the_live_view_shows_stages_their_progress_and_their_metrics() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    reporter = LiveReporter(console)
    reporter.stage_finished(StageRun("prepare", "key", "hit", 0.01))
    reporter.stage_started("llmr", "key", "")
    reporter.stage_progress("llmr", 10, 400, "steps", {"reward": 0.25})
    with console.capture() as capture:
        console.print(reporter._table())
    shown = capture.get()
    reporter.warning("look [here]")
    reporter.close()
    for text in ("prepare", "hit 0.0 s", "llmr", "running", "10/400 steps", "reward 0.25"):
        assert text in shown
    assert "look [here]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_closed_stream_never_breaks_the_run() -> None:
    stream = io.StringIO()
    stream.close()
    for reporter in (PlainReporter(stream, every_seconds=0), LiveReporter(Console(file=stream, force_terminal=True))):
        reporter.stage_started("llmr", "key", "")
        reporter.stage_progress("llmr", 1, 2, "steps", {})
        reporter.warning("look")
        reporter.stage_finished(DONE)
        reporter.close()
