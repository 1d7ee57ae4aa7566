"""docs/methods/g-eval.md names every setting of the judge, every metric and every set of criteria."""

import dataclasses
import re
from pathlib import Path

from kd_core.metrics.g_eval.prompt import CRITERIA
from kd_core.metrics.g_eval.scores import METRICS
from tasks.judge.settings import JudgeSettings

PAGE = (Path(__file__).parents[1] / "docs" / "methods" / "g-eval.md").read_text()
ROWS = set(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE))


def test_every_setting_and_every_metric_has_its_row() -> None:
    assert {field.name for field in dataclasses.fields(JudgeSettings)} | METRICS.keys() == ROWS


def test_every_set_of_criteria_is_named() -> None:
    assert {name for name in CRITERIA if f"`{name}`" not in PAGE} == set()
