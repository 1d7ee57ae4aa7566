"""`lengths` is what every stage of a run reads and writes, but where it differs by name; the catalogue agrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError
from prefect.utilities.schema_tools.validation import validate as validate_by_schema

from flows import compare_outline as comparison
from flows.catalogue import load_catalogue, override, put
from flows.distill_outline import OUTLINE, pipeline
from flows.outlines import execute, outline_of
from flows.settings import jsonable, validate
from kd_core.lengths import Lengths
from tasks.store import stage
from tasks.store.artifacts import Store
from tasks.store.progress import NullReporter
from tests.tasks.tiny_runs import write_pairs

PATH = Path(__file__).parents[2] / "prefect.yaml"
CATALOGUE = load_catalogue(PATH)
TAG = "lengths differ: "
NAMES = ("max_source_tokens", "max_target_tokens", "max_new_tokens", "max_length")
SHAPE = {"d_model": 8, "num_heads": 2}


@pytest.fixture
def short(tmp_path: Path) -> dict[str, Any]:
    """A run that names no length but the run's: every stage is there, drawn samples and exposure too."""
    return {
        "dataset": jsonable({"it": write_pairs(tmp_path / "pairs.csv")})["it"],
        "teacher": {"shape": SHAPE, "fit": {}},
        "student": {"shape": SHAPE},
        "lengths": {"source": 100, "target": 10},
        "exposure": {},
    }


Planned = list[tuple[str, dict[str, Any]]]


def planned(given: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """Each stage of a planned run with what it is keyed by, dotted setting → value; and last what the record says."""
    found: Planned = []
    key_record = stage.key_record

    def watched(*arguments: Any) -> Any:
        record = key_record(*arguments)
        found.append((record["stage"], flat(record["settings"])))
        return record

    monkeypatch.setattr(stage, "key_record", watched)
    valid = validate(OUTLINE.parameters, given)
    run, _ = execute(OUTLINE, Store(tmp_path / "store"), "short", valid, NullReporter(), planning=True)
    return [*found, ("record", flat(run.record.parameters))]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name → value of nested settings."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {name: x for key, each in value.items() for name, x in flat(each, f"{prefix}.{key}".strip(".")).items()}


def lengths_in(settings: Mapping[str, Any]) -> dict[str, int]:
    """The lengths among them; of a stage whose outputs are drawn, not those of the decoding that it does not read."""
    drawn = any(".sampling." in name for name in settings)
    found = {name: value for name, value in settings.items() if name.rpartition(".")[2] in NAMES}
    return {name: value for name, value in found.items() if not (drawn and ".decoding." in name)}


@pytest.mark.parametrize("kind", ["llmr", "seqkd", "forward_kl", "reverse_kl", "js", "gkd", "minillm"])
def test_the_runs_lengths_reach_every_stage(
    short: dict[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planned(short | {"method": {"kind": kind}}, tmp_path, monkeypatch)
    of_method = kind if kind in ("llmr", "seqkd", "minillm") else "divergence"
    assert {name for name, settings in found if lengths_in(settings)} == {
        "teacher", "score", "pre_distill", of_method, "decode", "exposure", "record"
    }  # fmt: skip
    for name, settings in found:
        for setting, tokens in lengths_in(settings).items():
            assert tokens == (100 if setting.endswith("max_source_tokens") else 10), (name, setting)


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("teacher.fit.max_source_tokens", {"teacher"}),
        ("teacher.fit.max_target_tokens", {"teacher"}),
        ("score.max_source_tokens", {"score"}),
        ("score.beam.max_new_tokens", {"score"}),
        ("pre_distill.max_source_tokens", {"pre_distill"}),
        ("pre_distill.max_target_tokens", {"pre_distill"}),
        ("method.max_source_tokens", {"llmr"}),
        ("method.sampling.max_new_tokens", {"llmr"}),
        ("evaluation.max_source_tokens", {"decode"}),
        ("evaluation.sampling.max_new_tokens", {"decode"}),
        ("evaluation.decoding.max_new_tokens", {"decode"}),
        ("exposure.max_source_tokens", {"decode", "exposure"}),
        ("exposure.max_length", {"decode", "exposure"}),
    ],
)
def test_a_stage_can_differ_by_name(
    short: dict[str, Any], setting: str, stages: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *found, (_, recorded) = planned(put(short, setting, 7), tmp_path, monkeypatch)
    assert recorded[setting] == 7
    assert {name for name, settings in found if 7 in lengths_in(settings).values()} == stages


def test_lengths_can_be_set_in_part(short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict(planned(override(short, ["lengths.source=128"]), tmp_path, monkeypatch))
    assert found["score"]["settings.max_source_tokens"] == 128
    assert found["score"]["settings.beam.max_new_tokens"] == 10
    with pytest.raises(ValueError, match="lengths: target must be at least 1, got 0"):
        validate(OUTLINE.parameters, override(short, ["lengths.target=0"]))
    with pytest.raises(ValueError, match=r"there is no setting lengths\.sources; did you mean lengths\.source\?"):
        validate(OUTLINE.parameters, override(short, ["lengths.sources=1"]))
    with pytest.raises(ValueError, match=r"score: max_source_tokens must be at least 1, or 0 for the run's, got -1"):
        validate(OUTLINE.parameters, override(short, ["score.max_source_tokens=-1"]))


def test_a_record_is_complete_and_one_without_lengths_is_taken_as_it_is(
    short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = validate(OUTLINE.parameters, short)
    run, _ = execute(OUTLINE, Store(tmp_path / "store"), "short", valid, NullReporter(), planning=True)
    recorded = run.record.parameters
    assert 0 not in lengths_in(flat(recorded)).values()
    del recorded["lengths"]  # as records were before a run had any
    _, again = planned(recorded, tmp_path, monkeypatch)[-1]
    assert lengths_in(again) == lengths_in(flat(recorded))


def test_prefects_form_has_the_lengths() -> None:
    schema = parameter_schema(pipeline).model_dump_for_openapi()
    assert schema["properties"]["lengths"]["default"] == {"source": 512, "target": 64}
    described = schema["definitions"]["ScoreSettings"]["properties"]["max_source_tokens"]
    assert described["description"] == "in tokens; 0 = the run's lengths.source"
    given: dict[str, Any] = {"dataset": {}, "teacher": {}, "student": {}}
    validate_by_schema(given | {"lengths": {"source": 128}}, schema, raise_on_error=True)
    with pytest.raises(ValidationError):
        validate_by_schema(given | {"lengths": {"sources": 128}}, schema, raise_on_error=True)


def runs_of(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The runs of a catalogue entry, as (variant, or the entry itself; validated parameters)."""
    entry = CATALOGUE[name]
    if entry.entrypoint != comparison.OUTLINE.entrypoint:
        yield name, validate(outline_of(entry.entrypoint).parameters, entry.parameters)
        return
    given = validate(comparison.OUTLINE.parameters, entry.parameters)
    del given["runtime"]
    _, tasks = comparison._tasks(**given | {"catalogue": str(PATH), "seeds": [0]})  # no length depends on the seed
    for task in tasks:
        yield task.cell.variant, task.parameters


def differences(run: Mapping[str, Any]) -> dict[str, int]:
    """The lengths that a run names beside its own, but for references that are learnt from at more than is written."""
    if "windows" in run:  # running text: contexts are windows.context everywhere, by construction
        horizon = run["evaluation"].horizon
        return {} if not run["method"].aggregates or run["method"].horizon == horizon else {"horizon": horizon}
    lengths: Lengths = run["lengths"]
    given = {dotted: tokens for name, each in run.items() for dotted, tokens in named(each, name)}
    return {
        name: tokens
        for name, tokens in given.items()
        if not (name.endswith("max_target_tokens") and tokens >= lengths.target)
    }


def named(settings: Any, prefix: str) -> Iterator[tuple[str, int]]:
    """The lengths that settings do not leave to the run."""
    for each in fields(settings) if is_dataclass(settings) else ():
        value, name = getattr(settings, each.name), f"{prefix}.{each.name}"
        if "length" in each.metadata and value:
            yield name, value
        yield from named(value, name)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_run_is_evaluated_at_the_lengths_that_it_trains_at_or_says_so(name: str) -> None:
    said = {each for tag in CATALOGUE[name].tags if tag.startswith(TAG) for each in tag.removeprefix(TAG).split(", ")}
    found = {variant: differences(run) for variant, run in runs_of(name)}
    for variant, differ in found.items():
        assert bool(differ) == (variant in said), (name, variant, differ)
    assert said <= set(found), "a tag names what is not there"
