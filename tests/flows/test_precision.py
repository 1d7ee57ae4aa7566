"""A precision that a run is to choose is chosen before anything is named by it, in the cells of a comparison too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main as cli
from tasks.compute import device
from tasks.store import stage
from tests.flows.test_compare_outline import catalogue as catalogue  # a fixture
from tests.flows.test_lengths import planned
from tests.flows.test_lengths import short as short  # a fixture

NAMES = ("dtype", "precision")


@pytest.mark.parametrize("fast", ["bfloat16", "float32"])
def test_stages_and_the_record_have_what_the_device_is_fast_in(
    fast: str, short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "fast_precision", lambda kind: fast)
    auto = {"optimizer": {"precision": "auto"}}
    given = short | {
        "teacher": short["teacher"] | {"dtype": "auto"},
        "pre_distill": auto,
        "method": {"kind": "js"} | auto,
    }
    stages = dict(planned(given, tmp_path, monkeypatch))
    assert stages["divergence"]["settings.optimizer.precision"] == fast
    assert stages["record"]["teacher.dtype"] == stages["record"]["pre_distill.optimizer.precision"] == fast
    assert not [
        name for each in stages.values() for name, value in each.items() if value == "auto" and name.endswith(NAMES)
    ]


def test_a_comparisons_cells_have_it_too(
    catalogue: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "fast_precision", lambda kind: "bfloat16")
    seen: list[Any] = []
    key_record = stage.key_record

    def watched(*arguments: Any) -> Any:
        seen.append(key_record(*arguments))
        return seen[-1]

    monkeypatch.setattr(stage, "key_record", watched)
    options = ["--prefect-file", "mine.yaml", "--set", "settings.method.optimizer.precision=auto"]
    assert cli.main(["plan", "compare/tiny", *options]) == 0, capsys.readouterr().err
    trained = [json.dumps(each["settings"], default=str) for each in seen if each["stage"] == "dagger_train"]
    assert trained
    assert all('"bfloat16"' in each and '"auto"' not in each for each in trained)
