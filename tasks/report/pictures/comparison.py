"""A run as pictures: its metrics against the swept setting or method by method, and excess error by length."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tasks.catalog.database import query
from tasks.report.names import swept
from tasks.report.results import literal
from tasks.report.sections.curves import EXCESS_ERROR
from tasks.store.artifacts import Store
from tasks.store.runs import RunRecord

COLOURS = (
    "#3b6fb6", "#d1741c", "#3a8f4d", "#a2488f", "#7a6a2f", "#4aa3a8", "#b33a3a", "#666666", "#d9a400", "#1f2a5c",
)  # fmt: skip
WANTED = (
    "perplexity", "free_running_ce", "g_eval", "bleu_2", "bleu_4", "rouge_l", "reward", "reverse_kl", "distinct_2",
    "equal", "repetition", "length", "per", "wer",
)  # fmt: skip


def comparison_png(comparison: Path, title: str, metrics: Sequence[str] = WANTED) -> bytes:
    """A PNG with a panel a metric, from a comparison.parquet: values with 95 % intervals over inputs and seeds.

    Reference systems, which nothing was varied for, are horizontal lines. Raises ValueError where none of the metrics
    has a value.
    """
    import pyarrow.parquet as pq
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in pq.read_table(comparison).to_pylist() if row["value"] is not None]
    shown = [metric for metric in metrics if any(row["metric"] == metric for row in rows)]
    if not shown:
        raise ValueError(f"{comparison} has no value of {', '.join(metrics)}")
    columns = min(3, len(shown))
    height = -(-len(shown) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * height + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colour = dict(zip(methods, COLOURS * (1 + len(methods) // len(COLOURS)), strict=False))
    swept = any(row["x"] is not None for row in rows)
    for number, metric in enumerate(shown, start=1):
        panel = figure.add_subplot(height, columns, number)
        of_metric = [row for row in rows if row["metric"] == metric]
        (_lines if swept else _points)(panel, of_metric, colour)
        unit = of_metric[0]["unit"]
        panel.set_title(f"{metric} ({unit})" if unit else metric, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
        if swept and number == 1:
            panel.legend(fontsize=8)
    return _png(figure)


def excess_error_png(curves: Mapping[str, Mapping[str, Mapping[int, float]]], title: str) -> bytes:
    """A PNG of ExError% against the length in tokens: method -> student -> length -> value.

    One line a method, the mean of its students where they all have a value; each of them thin behind it. Source: LLMR,
    Figure 2. Raises ValueError where there is no curve.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("no excess error was measured\nset exposure, for instance exposure.rows=500")
    figure = Figure(figsize=(7.0, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.add_subplot()
    for (method, students), colour in zip(curves.items(), COLOURS * (1 + len(curves) // len(COLOURS)), strict=False):
        for curve in students.values():
            panel.plot(list(curve), list(curve.values()), color=colour, linewidth=0.8, alpha=0.35)
        lengths = sorted(set.intersection(*(set(curve) for curve in students.values())))
        means = [fmean(curve[length] for curve in students.values()) for length in lengths]
        panel.plot(lengths, means, color=colour, linewidth=2, label=method)
    panel.axhline(0, color="#999999", linewidth=0.8)
    panel.set_xlabel("length, tokens", fontsize=9)
    panel.set_ylabel("excess error, %", fontsize=9)
    panel.set_title(title, fontsize=11)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    panel.legend(fontsize=8)
    return _png(figure)


def excess_error_curves(store: Store, run: str) -> dict[str, dict[str, dict[int, float]]]:
    """A run's excess error as `excess_error_png` takes it; a comparison's variants under the names that they have."""
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for row in query(store, EXCESS_ERROR.replace("$run", literal(run))).to_pylist():
        name = f"{row['method']} ({swept(row)})" if swept(row) else row["method"]
        curves.setdefault(name, {}).setdefault(row["student"], {})[row["length"]] = row["value"]
    return dict(sorted(curves.items(), key=lambda item: (item[0] != "pre_distilled", item[0])))


def write_figures(store: Store, run: RunRecord, directory: Path) -> list[Path]:
    """What there is to draw of a run, as PNG files named after it in `directory`. Raises ValueError for nothing."""
    pictures = {}
    for stage in run.stages:
        if stage.stage == "compare":
            table = store.artifact(stage.stage, stage.key).path / "comparison.parquet"
            pictures["comparison"] = comparison_png(table, run.name)
    curves = excess_error_curves(store, run.run_id)
    if curves:
        pictures["excess-error"] = excess_error_png(curves, run.name)
    if not pictures:
        raise ValueError(f"{run.run_id} is no comparison and has no excess error\nits report has its other figures")
    files = {directory / f"{run.run_id}-{name}.png": picture for name, picture in pictures.items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, picture in files.items():
            path.write_bytes(picture)
    except OSError as error:
        raise OSError(f"cannot write to {directory}: {error.strerror}\ngive another place with --figures") from error
    return list(files)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _lines(panel: Any, rows: list[dict[str, Any]], colour: dict[str, str]) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        if of_method[0]["x"] is None:
            panel.axhline(of_method[0]["value"], color=colour[method], linestyle="--", linewidth=1.2, label=method)
            continue
        of_method.sort(key=lambda row: row["x"])
        x, value = [row["x"] for row in of_method], [row["value"] for row in of_method]
        panel.plot(x, value, color=colour[method], marker="o", markersize=4, linewidth=1.4, label=method)
        if all(row["low"] is not None for row in of_method):
            low, high = ([row[end] for row in of_method] for end in ("low", "high"))
            panel.fill_between(x, low, high, color=colour[method], alpha=0.15, linewidth=0)
        panel.set_xlabel(of_method[0]["x_name"], fontsize=8)


def _points(panel: Any, rows: list[dict[str, Any]], colour: dict[str, str]) -> None:
    for place, row in enumerate(reversed(rows)):
        if row["low"] is not None:
            panel.plot([row["low"], row["high"]], [place, place], color=colour[row["method"]], linewidth=2)
        panel.plot(row["value"], place, "o", color=colour[row["method"]], markersize=5)
    panel.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)])
