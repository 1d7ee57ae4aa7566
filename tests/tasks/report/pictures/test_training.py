"""The picture of a training: what moves is drawn, what does not is said."""

from pathlib import Path
from typing import Any

import pytest

from kd_core.train.state import StepMetrics
from tasks.compute.training import write_log
from tasks.report.pictures.training import MOST_PANELS, curves_png


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was put on the figure: its title, and the titles of its panels."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    found: dict[str, Any] = {"panels": []}
    title, panel = Figure.suptitle, Axes.set_title

    def suptitle(self: Figure, text: str, **named: Any) -> Any:
        found["title"] = text
        return title(self, text, **named)

    def set_title(self: Axes, text: str, **named: Any) -> Any:
        found["panels"].append(text)
        return panel(self, text, **named)

    monkeypatch.setattr(Figure, "suptitle", suptitle)
    monkeypatch.setattr(Axes, "set_title", set_title)
    return found


def log(folder: Path, *rows: dict[str, float]) -> Path:
    path = folder / "training_log.parquet"
    write_log(path, [StepMetrics(step, values) for step, values in enumerate(rows, start=1)])
    return path


def test_validation_comes_first_and_what_never_changes_is_in_the_title(tmp_path: Path, drawn: dict[str, Any]) -> None:
    rows = [{"reward": float(i), "truncated": 0.0, "validation_reward": i / 2} for i in range(3)]
    assert curves_png(log(tmp_path, *rows), "llmr").startswith(b"\x89PNG")
    assert drawn == {"title": "llmr\nthroughout: truncated 0", "panels": ["validation_reward", "reward"]}


def test_the_loss_is_drawn_beside_validation_and_other_outputs_come_last(tmp_path: Path, drawn: dict[str, Any]) -> None:
    names = ["validation_text_log_prob", "validation_sampled_equal", "grad_norm", "loss", "validation_equal"]
    rows = [{name: float(i) for name in names if i or name.startswith("validation")} for i in range(3)]
    rows[1:] = [{name: value for name, value in row.items() if "text" not in name} for row in rows[1:]]
    curves_png(log(tmp_path, *rows), "llmr")
    assert drawn["panels"] == ["validation_equal", "loss", "grad_norm", "validation_sampled_equal"]
    assert drawn["title"].endswith("throughout: validation_text_log_prob 0")


def test_a_log_in_which_nothing_changes_is_drawn(tmp_path: Path, drawn: dict[str, Any]) -> None:
    curves_png(log(tmp_path, {"loss": 1.0}, {"loss": 1.0}), "x")
    assert drawn["panels"] == ["loss"]


def test_there_are_never_too_many_panels(tmp_path: Path, drawn: dict[str, Any]) -> None:
    curves_png(log(tmp_path, *({f"m{i}": float(i * j) for i in range(20)} for j in range(2))), "x")
    assert len(drawn["panels"]) == MOST_PANELS


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no rows"):
        curves_png(log(tmp_path), "x")
