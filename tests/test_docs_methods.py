"""docs/methods names every setting and every metric: a setting that nobody can look up is one nobody uses."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from kd_core.lengths import Lengths
from kd_core.losses.rewards import RewardSettings
from kd_core.metrics.outputs import ALL_METRICS, Outputs, References, evaluate_outputs
from kd_core.rollout.beam_search import BeamSettings
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import BatchSettings
from kd_core.train.llmr import LLMRSettings
from kd_core.train.state import OptimizerSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.compute.completions import EndpointSettings
from tasks.pairs.evaluate import EvaluationSettings
from tasks.pairs.exposure import ExposureSettings
from tasks.pairs.score import ScoreSettings

PAGES = [Path(__file__).parents[1] / "docs" / "methods" / f"{page}.md" for page in ("llmr", "metrics")]
LLMR, METRICS = (
    set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`\n]+)`", page.read_text())))) for page in PAGES
)
NAMED = LLMR | METRICS
SETTINGS = (
    Lengths,
    LLMRSettings,
    RewardSettings,
    SamplingSettings,
    BatchSettings,
    OptimizerSettings,
    SupervisedSettings,
    ScoreSettings,
    BeamSettings,
    EvaluationSettings,
    ExposureSettings,
    EndpointSettings,
)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: str(settings.__name__))
def test_every_setting_is_named(settings: Any) -> None:
    assert {field.name for field in dataclasses.fields(settings)} - NAMED - {"kind"} == set()


def test_every_metric_is_named() -> None:
    outputs = Outputs(predictions=["a b c d"], num_tokens=[5], truncated=[False], reward_sum=[1.0], reward_count=[5])
    metrics = evaluate_outputs(outputs, References(["a b c d"], resamples=2), ALL_METRICS).metrics
    assert {metric.metric for metric in metrics} - METRICS == set()
