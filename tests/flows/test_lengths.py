"""The catalogue evaluates at the lengths that it trains at, or says of whom it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flows import compare_outline as comparison
from flows.catalogue import load_catalogue, put
from flows.outlines import outline_of
from flows.settings import validate
from kd_core.train.supervised import SupervisedSettings
from tasks.pairs.evaluate import EvaluationSettings
from tasks.pairs.exposure import ExposureSettings
from tasks.pairs.score import ScoreSettings

PATH = Path(__file__).parents[2] / "prefect.yaml"
CATALOGUE = load_catalogue(PATH)
TAG = "lengths differ: "


def runs_of(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The runs of a catalogue entry, as (variant, or the entry itself; validated parameters)."""
    entry = CATALOGUE[name]
    if entry.entrypoint != comparison.OUTLINE.entrypoint:
        yield name, validate(outline_of(entry.entrypoint).parameters, entry.parameters)
        return
    given = validate(comparison.OUTLINE.parameters, entry.parameters)
    given = {each: value for each, value in given.items() if each not in ("workers", "runtime")}
    given["seeds"] = given["seeds"][:1]  # no length depends on the seed
    _, tasks = comparison._tasks(**given | {"catalogue": str(PATH)})
    for task in tasks:
        yield task.cell.variant, task.parameters


def lengths_read(run: Mapping[str, Any]) -> dict[str, int | None]:
    """Where a run cuts its sources, in tokens."""
    fit = run["teacher"].fit
    cut = {
        "teacher.fit": fit,
        **{name: run[name] for name in ("score", "pre_distill", "method", "evaluation", "exposure")},
    }
    return {name: getattr(each, "max_source_tokens", None) for name, each in cut.items()}


def lengths_written(run: Mapping[str, Any]) -> dict[str, int | None]:
    """How many tokens a run writes, stage by stage."""
    evaluation, exposure = run["evaluation"], run["exposure"]
    sampling = getattr(run["method"], "sampling", None)
    return {
        "score.beam": run["score"].beam.max_new_tokens,
        "method.sampling": None if sampling is None else sampling.max_new_tokens,
        "evaluation": (evaluation.sampling or evaluation.decoding).max_new_tokens,
        "exposure.max_length": None if exposure is None else exposure.max_length,
    }


def differences(run: Mapping[str, Any]) -> list[dict[str, int]]:
    """Lengths that should be one and are not; empty where all agree."""
    if "windows" in run:  # running text: contexts are windows.context everywhere, by construction
        aggregated = run["method"].horizon if run["method"].aggregates else None
        groups = [{"method.horizon": aggregated, "evaluation.horizon": run["evaluation"].horizon}]
    else:
        groups = [lengths_read(run), lengths_written(run)]
        learnt, written = run["pre_distill"].max_target_tokens, run["score"].beam.max_new_tokens
        if learnt < written:
            groups.append({"pre_distill.max_target_tokens": learnt, "score.beam.max_new_tokens": written})
    there = [{name: value for name, value in group.items() if value is not None} for group in groups]
    return [group for group in there if len(set(group.values())) > 1]


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_run_is_evaluated_at_the_lengths_that_it_trains_at_or_says_so(name: str) -> None:
    said = {each for tag in CATALOGUE[name].tags if tag.startswith(TAG) for each in tag.removeprefix(TAG).split(", ")}
    found = {variant: differences(run) for variant, run in runs_of(name)}
    for variant, differ in found.items():
        assert bool(differ) == (variant in said), (name, variant, differ)
    assert said <= set(found), "a tag names what is not there"


def test_defaults_agree_with_each_other() -> None:
    """A run that names no length at all is evaluated as it is trained."""
    assert {
        each().max_source_tokens for each in (ScoreSettings, SupervisedSettings, EvaluationSettings, ExposureSettings)
    } == {512}
    assert EvaluationSettings().decoding.max_new_tokens == ScoreSettings().beam.max_new_tokens
    assert ExposureSettings().max_length == ScoreSettings().beam.max_new_tokens


def test_a_length_that_differs_is_seen() -> None:
    """The check itself: each length of a run, moved alone, is a difference."""
    run = CATALOGUE["llmr-cnndm"].parameters
    known = outline_of(CATALOGUE["llmr-cnndm"].entrypoint).parameters
    exposed = put(run, "exposure", {"max_length": 128, "max_source_tokens": 1024})
    assert differences(validate(known, exposed)) == []
    for setting in (
        "score.beam.max_new_tokens",
        "method.sampling.max_new_tokens",
        "evaluation.decoding.max_new_tokens",
        "exposure.max_length",
        "score.max_source_tokens",
        "pre_distill.max_source_tokens",
        "pre_distill.max_target_tokens",
        "method.max_source_tokens",
        "evaluation.max_source_tokens",
        "exposure.max_source_tokens",
    ):
        moved = validate(known, put(exposed, setting, 64))
        assert len(differences(moved)) == 1, setting
