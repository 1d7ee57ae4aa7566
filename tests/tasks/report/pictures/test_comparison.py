"""A run's pictures: the comparison, and the excess error with the mean of a method's cells drawn on top of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.cli import main as cli
from tasks.report.pictures.comparison import excess_error_curves, excess_error_png
from tasks.store.artifacts import Store
from tests.tasks.report.fake_reports import run_comparison, run_hostile

PNG = b"\x89PNG"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path))
    return Store(tmp_path)


def test_the_report_command_draws_what_there_is(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, methods = run_comparison(store, "dad-dagger"), run_comparison(store, "llmr")
    for run, names in ((grid, ["comparison"]), (methods, ["comparison", "excess-error"])):
        assert cli.main(["report", run, "--figures", str(tmp_path / "new" / "figures")]) == 0
        page, *pictures = map(Path, capsys.readouterr().out.splitlines())
        assert page.suffix == ".html"
        assert [path.name for path in pictures] == [f"{run}-{name}.png" for name in names]
        assert all(path.read_bytes().startswith(PNG) for path in pictures)


def test_a_run_without_pictures_says_where_its_figures_are(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_hostile(store)
    assert cli.main(["report", run, "--figures", str(tmp_path / "figures")]) == 1
    assert "is no comparison and has no excess error\n" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_the_curves_of_a_comparison_are_one_for_each_student(store: Store) -> None:
    curves = excess_error_curves(store, run_comparison(store, "llmr"))
    assert list(curves) == ["pre_distilled", "llmr", "reverse_kl", "seqkd"]
    assert sorted(curve[10] for curve in curves["pre_distilled"].values()) == pytest.approx([25, 26, 27])
    middle = sorted(curves["reverse_kl"].values(), key=lambda curve: curve[16])
    assert len(middle) == 3
    assert middle[1] == pytest.approx({k: 1.3 * k for k in range(1, 17)})


def test_the_mean_is_taken_where_every_cell_has_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[list[int], list[float]]] = []
    plot = Axes.plot

    def spy(self: Axes, x: list[int], y: list[float], **named: Any) -> Any:
        drawn.append((x, y))
        return plot(self, x, y, **named)

    monkeypatch.setattr(Axes, "plot", spy)
    curves = {"llmr": {"seed=0": {1: 0.0, 2: 3.0, 3: 6.0}, "seed=1": {1: 0.0, 2: 5.0}}}
    assert excess_error_png(curves, "a run").startswith(PNG)
    assert drawn == [([1, 2, 3], [0.0, 3.0, 6.0]), ([1, 2], [0.0, 5.0]), ([1, 2], [0.0, 4.0])]
    with pytest.raises(ValueError, match="no excess error was measured\nset exposure"):
        excess_error_png({}, "a run")
