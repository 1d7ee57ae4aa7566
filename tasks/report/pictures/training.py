"""Training curves as one picture, from the training_log.parquet of a stage."""

from __future__ import annotations

import io
from pathlib import Path

MOST_PANELS = 12
LATER = ("validation_sampled_", "validation_text_")  # of validation, what comes after all else


def curves_png(training_log: Path, title: str) -> bytes:
    """A PNG with one small plot per metric of the log (step int64, metric string, value float64), against the step.

    Validation comes first; what never changed is said in the title, not drawn. Raises ValueError for an empty log.
    """
    import pyarrow.parquet as pq
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    log = pq.read_table(training_log).to_pydict()
    points: dict[str, tuple[list[int], list[float]]] = {}
    for step, metric, value in zip(log["step"], log["metric"], log["value"], strict=True):
        steps, values = points.setdefault(metric, ([], []))
        steps.append(step)
        values.append(value)
    if not points:
        raise ValueError(f"{training_log} has no rows")
    constant = {
        metric: values[0]
        for metric, (_, values) in points.items()
        if len(set(values)) == 1 and (len(values) > 1 or metric.startswith(LATER))
    }
    moving = [metric for metric in points if metric not in constant] or list(points)
    shown = sorted(moving, key=_place)[:MOST_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.3 * rows + 0.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # no window system, and no pyplot state shared with others
    still = ", ".join(f"{metric} {value:g}" for metric, value in constant.items())
    figure.suptitle(f"{title}\nthroughout: {still}" if still else title, fontsize=11)
    for number, metric in enumerate(shown, start=1):
        panel = figure.add_subplot(rows, columns, number)
        panel.plot(*points[metric], linewidth=1.2, color="#3b6fb6", marker="." if len(points[metric][0]) < 30 else "")
        panel.set_title(metric, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _place(metric: str) -> int:
    """What counts, first: validation, then the loss; then all else, the validation of other outputs last."""
    if metric.startswith(LATER):
        return 3
    return 0 if metric.startswith("validation") else 1 if metric == "loss" else 2
