"""A run as Prefect shows it: log lines and a progress bar while it goes, then a table per stage, curves and results."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.output import grid_summary, summary
from tasks.report.pictures.comparison import comparison_png, excess_error_curves, excess_error_png
from tasks.report.pictures.training import curves_png
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import Reporter
from tasks.store.runs import StageRun
from tasks.store.stage import Run

PROGRESS_SECONDS = 5.0
LOG_SECONDS = 30.0


class PrefectReporter:
    """Passes everything on to the terminal's reporter, and says it in Prefect's log and artifacts too."""

    def __init__(self, store: Store, terminal: Reporter) -> None:
        self._store, self._terminal = store, terminal
        self._logger = get_run_logger()
        self._bar: UUID | None = None
        self._shown = self._logged = 0.0

    def stage_started(self, stage: str, key: str, why: str) -> None:
        self._terminal.stage_started(stage, key, why)
        self._logger.info(f"{stage}: {why}" if why else stage)
        self._bar, self._shown, self._logged = None, time.monotonic(), time.monotonic()

    def stage_progress(self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]) -> None:
        self._terminal.stage_progress(stage, done, total, unit, metrics)
        now, percent = time.monotonic(), 100 * done / max(total, 1)
        if now - self._shown > PROGRESS_SECONDS:
            self._shown = now
            if self._bar is None:
                key = f"{artifact_key(stage)}-progress"
                self._bar = cast(
                    UUID, create_progress_artifact(percent, key=key)
                )  # no coroutine: this is no async code
            else:
                update_progress_artifact(self._bar, percent)
        if now - self._logged > LOG_SECONDS:
            self._logged = now
            moving = "".join(f", {name} {value:.4g}" for name, value in metrics.items())
            self._logger.info(f"{stage}: {done:g} of {total:g} {unit}{moving}")

    def stage_finished(self, stage: StageRun) -> None:
        self._terminal.stage_finished(stage)
        self._logger.info(f"{stage.name}: {stage.outcome} in {stage.seconds:.1f} s")
        if self._bar is not None:
            update_progress_artifact(self._bar, 100.0)
        publish_stage(stage, self._store)

    def warning(self, text: str) -> None:
        self._terminal.warning(text)
        self._logger.warning(text)

    def close(self) -> None:
        self._terminal.close()


def publish_stage(stage: StageRun, store: Store) -> None:
    """A table of what the stage was and what it measured; its training curves as a picture."""
    artifact = store.artifact(stage.stage, stage.key)
    manifest = artifact.manifest()
    rows: dict[str, Any] = {"outcome": stage.outcome, "why": stage.why, "seconds": round(stage.seconds, 2)}
    rows |= {"key": stage.key, "built": manifest.created, "seconds to build": round(manifest.seconds, 2)}
    rows |= {"bytes": sum(file.bytes for file in manifest.files.values()), **manifest.stats}
    key = artifact_key(stage.name)
    create_table_artifact(
        [{"what": name, "value": str(value)} for name, value in rows.items()],
        key=key,
        description=f"Stage `{stage.name}`: `{artifact.path}`",
    )
    log = artifact.path / "training_log.parquet"
    if log.exists():
        _publish_picture(f"{key}-curves", f"Training curves of {stage.name}", curves_png(log, stage.name))


def _publish_picture(key: str, what: str, png: bytes) -> None:
    picture = base64.b64encode(png).decode("ascii")
    create_markdown_artifact(f"![{what}](data:image/png;base64,{picture})", key=key, description=what)


def publish_results(run: Run, evaluation: Artifact, store: Store) -> None:
    """The comparison table, and where the results are."""
    grid = summary.results(evaluation.path)
    create_table_artifact(
        [dict(zip(grid.headers, row, strict=True)) for row in grid.rows],
        key="comparison",
        description=f"{run.run_id}, {grid.headers[0]}, 95 % intervals",
    )
    if grid_summary.is_comparison(evaluation.path):
        picture = comparison_png(evaluation.path / "comparison.parquet", run.record.name)
        _publish_picture("comparison-figure", f"The comparison {run.run_id}", picture)
    curves = excess_error_curves(store, run.run_id)
    if curves:
        _publish_picture("excess-error", f"Excess error of {run.run_id}", excess_error_png(curves, run.record.name))
    results = store.root / "results.duckdb"
    create_link_artifact(
        results.as_uri(),
        link_text=str(results),
        key="results",
        description=f"`distill sql \"from metrics where run = '{run.run_id}'\"`",
    )


def publish_report(run_id: str, report: Path) -> None:
    """Where the run's report is."""
    create_link_artifact(
        report.as_uri(), link_text=str(report), key="report", description=f"`distill report {run_id}`, one HTML page"
    )


def artifact_key(stage: str) -> str:
    """A stage's name as Prefect's artifact keys allow it: lower case, digits and dashes."""
    return "".join(letter if letter.isalnum() else "-" for letter in stage.lower()).strip("-")
