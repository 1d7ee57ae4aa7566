"""A teacher that is fitted here, the warning about one that is no better than its student, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flows.settings import validate
from kd_core.models.loading import load_model, load_tokenizer
from kd_core.models.prompts import Prompts
from kd_core.models.revisions import commit_of
from kd_core.models.shapes import T5Shape
from kd_core.train.state import OptimizerSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.compute.models import load_artifact
from tasks.pairs import score as score_stage
from tasks.pairs.pre_distill import pre_distill
from tasks.pairs.prepare import prepare
from tasks.pairs.score import ScoreSettings, score
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings, teacher
from tasks.store.artifacts import Artifact, Store
from tasks.store.keys import canonical
from tasks.store.progress import NullReporter
from tasks.store.stage import open_run
from tests.tasks.tiny_models import write_model
from tests.tasks.tiny_runs import RUNTIME, SCORE, TRAINING, write_pairs

SHAPE = T5Shape(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2)
PROMPT = "reply to {source}"
NO_BETTER = "the teacher is no better than the student it teaches"


class Ear(NullReporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def warning(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def run(tmp_path: Path, ear: Ear) -> Iterator[Artifact]:
    """An open run, and the corpus in it."""
    store = Store(tmp_path / "store")
    with open_run(store, name="test", runtime=RUNTIME, reporter=ear):
        yield prepare(dataset=write_pairs(tmp_path / "pairs.csv"), seed=0, limit=None)


def fitted(steps: int) -> TeacherSettings:
    optimizer = OptimizerSettings(learning_rate=0.01)
    fit = SupervisedSettings(
        epochs=steps, max_steps=steps, max_source_tokens=16, max_target_tokens=8, optimizer=optimizer
    )
    return TeacherSettings(shape=SHAPE, vocab_size=40, fit=fit)


def distil(
    corpus: Artifact, teacher_model: Artifact, student: StudentSettings, training: SupervisedSettings = TRAINING
) -> dict[str, Any]:
    """What pre_distill has recorded."""
    outputs = score(corpus=corpus, teacher=teacher_model, prompt="{source}", settings=SCORE)
    made = pre_distill(
        corpus=corpus,
        teacher=teacher_model,
        outputs=outputs,
        student=student,
        prompt=Prompts("{source}"),
        settings=training,
        seed=0,
    )
    return made.manifest().stats


def test_a_fitted_teacher_is_a_model_with_its_own_tokenizer(run: Artifact) -> None:
    made = teacher(corpus=run, settings=fitted(3), seed=0)
    model, tokenizer = load_model(made.path / "model"), load_tokenizer(made.path / "model")
    assert model.config.vocab_size == len(tokenizer)
    stats, log = made.manifest().stats, pq.read_table(made.path / "training_log.parquet").to_pylist()
    assert stats["parameters"] == model.num_parameters()
    (last,) = [row["value"] for row in log if row["metric"] == "validation_loss"]
    assert stats["validation_loss"] == last
    assert max(row["step"] for row in log) == 3


def test_fitted_twice_it_is_byte_identical(tmp_path: Path) -> None:
    dataset, built = write_pairs(tmp_path / "pairs.csv"), []
    for name in ("one", "two"):
        with open_run(Store(tmp_path / name), name="test", runtime=RUNTIME):
            corpus = prepare(dataset=dataset, seed=0, limit=None)
            built.append(teacher(corpus=corpus, settings=fitted(3), seed=0).manifest())
    assert built[0].key == built[1].key
    assert "model/tokenizer.json" in built[0].files
    assert built[0].files == built[1].files


def test_a_better_teacher_is_not_warned_about(run: Artifact, ear: Ear) -> None:
    stats = distil(run, teacher(corpus=run, settings=fitted(40), seed=0), StudentSettings(shape=SHAPE))
    assert stats["teacher_validation_loss"] < stats["validation_loss"] - 0.5
    assert "warnings" not in stats
    assert ear.heard == []


def test_a_teacher_that_learned_next_to_nothing_is_warned_about(run: Artifact, ear: Ear) -> None:
    well = teacher(corpus=run, settings=fitted(40), seed=0)
    badly = teacher(corpus=run, settings=fitted(1), seed=0)
    stats = distil(run, badly, StudentSettings(name=str(well.path / "model")))
    assert [text for text in ear.heard if text.startswith(NO_BETTER)] == stats["warnings"]
    best = min(stats["validation_loss_before"], stats["validation_loss"])
    numbers = f"{stats['teacher_validation_loss']:.3f} against {best:.3f} nats per token"
    assert numbers in stats["warnings"][0]


def test_a_teacher_that_is_its_own_student_is_warned_about(run: Artifact, ear: Ear) -> None:
    teacher_model = teacher(corpus=run, settings=fitted(40), seed=0)
    stats = distil(run, teacher_model, StudentSettings(name=str(teacher_model.path / "model")))
    assert stats["teacher_validation_loss"] == stats["validation_loss_before"]
    assert len(stats["warnings"]) == 1
    assert stats["warnings"][0].startswith(NO_BETTER)
    assert ear.heard == stats["warnings"]


def test_a_student_that_was_better_before_it_was_taught_is_warned_about(run: Artifact) -> None:
    teacher_model = teacher(corpus=run, settings=fitted(40), seed=0)
    ruinous = replace(TRAINING, optimizer=OptimizerSettings(learning_rate=0.5))
    stats = distil(run, teacher_model, StudentSettings(name=str(teacher_model.path / "model")), ruinous)
    assert stats["validation_loss_before"] == stats["teacher_validation_loss"] < stats["validation_loss"]
    assert stats["warnings"][0].startswith(f"{NO_BETTER} (before it was taught anything): ")


def test_the_prompt_makes_no_other_teacher(run: Artifact, tmp_path: Path) -> None:
    name = str(write_model(tmp_path / "t0", own_head=True))
    made = [teacher(corpus=run, settings=TeacherSettings(name=name, prompt=p), seed=0) for p in ("{source}", PROMPT)]
    assert made[0] == made[1]
    assert not (made[0].path / "model").exists()  # a reference: eleven gigabytes are not copied


def test_a_corpus_too_small_for_the_vocabulary_is_refused(run: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the corpus gives only \d+ of 4000 tokens\nlower teacher.vocab_size"):
        teacher(corpus=run, settings=replace(fitted(1), vocab_size=4000), seed=0)
    assert not list((tmp_path / "store" / "artifacts").glob("teacher/*"))


def test_a_vocabulary_too_small_for_the_characters_is_refused(run: Artifact) -> None:
    with pytest.raises(ValueError, match=r"^no tokenizer of 16 tokens .*smaller than.*\nraise teacher.vocab_size"):
        teacher(corpus=run, settings=replace(fitted(1), vocab_size=16), seed=0)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": "a/b", "prompt": "no place"}, r"prompt must hold \{source\} exactly once, got 'no place'"),
        ({"name": "a/b", "prompt": "{source}{source}"}, "exactly once"),
        ({"shape": SHAPE}, "needs fit"),
        ({"name": "a/b", "fit": SupervisedSettings()}, "never fitted"),
        ({"name": "a/b", "shape": SHAPE}, "both or neither"),
        ({"name": "a/b", "vocab_size": 15}, "vocab_size must be at least 16, got 15"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TeacherSettings(**fields)


SHARDED = replace(SCORE, shard_rows=20, batch_rows=8)


@pytest.fixture
def teacher_model(run: Artifact, tmp_path: Path) -> Artifact:
    """A teacher by path, whose embedding has 32 rows beyond its 160 tokens."""
    return teacher(corpus=run, settings=TeacherSettings(name=str(write_model(tmp_path / "t0", own_head=True))), seed=0)


def written(run: Artifact, teacher_model: Artifact, settings: ScoreSettings) -> Artifact:
    return score(corpus=run, teacher=teacher_model, prompt=PROMPT, settings=settings)


def read(artifact: Artifact, kind: str) -> list[pa.Table]:
    """The shards of a kind, in their order."""
    return [pq.read_table(path) for path in sorted(artifact.path.glob(f"{kind}-*.parquet"))]


def test_outputs_stand_in_the_order_of_the_data_and_their_tokens_are_counted(
    run: Artifact, teacher_model: Artifact
) -> None:
    made = written(run, teacher_model, SHARDED)
    outputs = read(made, "outputs")
    assert [table.num_rows for table in outputs] == [20, 20, 20, 4]
    train = pq.read_table(run.path / "train.parquet")["id"].to_pylist()
    assert [number for table in outputs for number in table["id"].to_pylist()] == train
    stats = made.manifest().stats
    assert stats["tokens"] == sum(len(ids) for table in outputs for ids in table["token_ids"].to_pylist())
    assert stats["bytes_per_token"] * stats["tokens"] == sum(p.stat().st_size for p in made.path.glob("*.parquet"))
    assert stats["tokens_per_second"] > 0


@pytest.mark.parametrize(("name", "value", "now"), [("labels", "topk", "kind"), ("label_top_k", 5, "top_k")])
def test_labels_are_set_elsewhere_now_and_records_of_before_are_read(name: str, value: object, now: str) -> None:
    known = {"score": (ScoreSettings, ScoreSettings())}
    said = rf"^score: {name} is no setting of score any more: labels are a stage of their own\nset labels\.{now}$"
    with pytest.raises(ValueError, match=said):
        validate(known, {"score": {name: value}})
    found = validate(known, {"score": {"labels": "none", "label_top_k": 50, "batch_rows": 8}})["score"]
    assert found == ScoreSettings(batch_rows=8)
    assert canonical(found, "score") == canonical(ScoreSettings(), "score") | {"batch_rows": 8}
    assert canonical(found, "score").items() >= {"labels": "none", "label_top_k": 50}.items()


def test_finished_shards_are_not_written_again(
    run: Artifact, teacher_model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    table = score_stage._table

    def broken_off(loaded: Any, sources: Any, ids: Any, index: torch.Tensor, *more: Any) -> pa.Table:
        begun.append(int(index[0]))
        if begun == [0, 20]:
            raise KeyboardInterrupt
        return table(loaded, sources, ids, index, *more)

    monkeypatch.setattr(score_stage, "_table", broken_off)
    with pytest.raises(KeyboardInterrupt):
        written(run, teacher_model, SHARDED)
    made = written(run, teacher_model, SHARDED)
    assert begun == [0, 20, 20, 40, 60]
    assert len(read(made, "outputs")) == 4


def test_a_teacher_of_the_hub_is_held_to_its_commit_and_what_is_not_pinned_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, hub = "c" * 40, tmp_path / "hub" / "models--some--teacher"
    write_model(hub / "snapshots" / commit, own_head=False)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit_of.cache_clear()
    store = Store(tmp_path / "store")
    with open_run(store, name="test", runtime=RUNTIME):
        corpus = prepare(dataset=write_pairs(store.root / "pairs.csv"), seed=0, limit=None)
        loose = teacher(corpus=corpus, settings=TeacherSettings(name="some/teacher"), seed=0)
        said = loose.manifest().stats["warnings"]
        pinned = teacher(corpus=corpus, settings=TeacherSettings(name="some/teacher", revision=commit), seed=0)
    assert said == [f"some/teacher has no revision: taken at its commit {commit}; pin that as revision"]
    assert pinned == loose
    assert json.loads((loose.path / "reference.json").read_text())["revision"] == commit
    assert load_artifact(loose, torch.device("cpu")).model.config.vocab_size == 192
    commit_of.cache_clear()
