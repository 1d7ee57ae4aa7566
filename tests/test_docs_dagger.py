"""docs/methods/dad-dagger.md names every setting of a run on running text, every stage, and every metric."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.reading.texts import TextSettings
from flows.distill_text_outline import pipeline
from kd_core.metrics.running_text import cross_entropy, free_running
from kd_core.models.shapes import GPTNeoShape
from kd_core.rollout.teacher_labels import LabelSettings
from kd_core.train.language_model import PretrainSettings
from kd_core.windows.cutting import WindowSettings
from tasks.text.dagger_settings import DaggerSettings
from tasks.text.evaluate import TextEvaluationSettings
from tasks.text.language_model import TeacherModelSettings

PAGE = Path(__file__).parents[1] / "docs" / "methods" / "dad-dagger.md"
NAMED = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`\n]+)`", PAGE.read_text()))))
ELSEWHERE = {"revision", "dtype", "source", "path", "pretraining_path", "transfer_words"}  # in the README


@pytest.mark.parametrize(
    "settings",
    [
        WindowSettings,
        LabelSettings,
        DaggerSettings,
        TextEvaluationSettings,
        TeacherModelSettings,
        PretrainSettings,
        GPTNeoShape,
        TextSettings,
    ],
    ids=lambda settings: str(settings.__name__),
)
def test_every_setting_is_named(settings: Any) -> None:
    assert {field.name for field in dataclasses.fields(settings)} - NAMED - ELSEWHERE == set()


def test_every_parameter_of_a_run_is_named() -> None:
    assert set(pipeline.__annotations__) - NAMED - {"return"} == set()


def test_every_metric_is_named() -> None:
    block, nll = np.zeros(3, dtype=np.int64), np.ones((3, 2))
    measures = cross_entropy(nll[:, 0], block, 1) + free_running(nll, nll > 0, block, 1)
    assert {each.metric for each in measures if "_step_" not in each.metric} - NAMED == set()
