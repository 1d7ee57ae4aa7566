"""Runs on running text from nothing to their metrics: what is reused, what is recorded, what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from kd_core.models.loading import load_model, load_tokenizer
from kd_core.windows.cutting import contexts, window_targets
from kd_core.windows.dad_dagger import Aggregated, aggregate
from kd_core.windows.last_block import next_hidden, trunk
from tasks.catalog.database import query
from tasks.compute.models import lone_head
from tasks.export.export import export_run
from tasks.labels.files import HEAD, read_head
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter
from tasks.store.stage import Run
from tasks.text import dagger_aggregate
from tasks.text.tokens import read_tokens
from tests.tasks.tiny_texts import run_text, write_texts


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run, Artifact]:
    store = Store(tmp_path_factory.mktemp("text"))
    return store, *run_text(store)


@pytest.fixture
def own(first: tuple[Store, Run, Artifact], tmp_path: Path) -> Store:
    """A copy of the store after the first run: a test may add to it."""
    shutil.copytree(first[0].root, tmp_path / "store")
    return Store(tmp_path / "store")


def built(run: Run) -> list[str]:
    return [stage.name for stage in run.stages if stage.outcome == "built"]


def made(first: tuple[Store, Run, Artifact], name: str) -> Artifact:
    store, run, _ = first
    return its(store, run, name)


def its(store: Store, run: Run, name: str) -> Artifact:
    found = next(stage for stage in run.stages if stage.name == name)
    return store.artifact(found.stage, found.key)


def test_the_stages_are_rounds_of_training_with_aggregation_between(first: tuple[Store, Run, Artifact]) -> None:
    names = [stage.name for stage in first[1].stages]
    rounds = [name for name in names if name.startswith("dagger_")]
    assert rounds == [
        "dagger_train[1]",
        "dagger_aggregate[1]",
        "dagger_train[2]",
        "dagger_aggregate[2]",
        "dagger_train[3]",
    ]
    assert names[-1] == "evaluate"


def test_again_everything_is_a_hit(own: Store) -> None:
    again, _ = run_text(own)
    assert built(again) == []


def test_more_rounds_cost_the_rounds_that_are_new(own: Store) -> None:
    more, _ = run_text(own, "method.rounds=5")
    assert [name for name in built(more) if name.startswith("dagger_")] == [
        "dagger_aggregate[3]",
        "dagger_train[4]",
        "dagger_aggregate[4]",
        "dagger_train[5]",
    ]
    assert {name for name in built(more) if not name.startswith("dagger_")} <= {
        "free_run[round_3]",
        "free_run[round_4]",
        "free_run[dad_dagger]",
        "evaluate",
    }


def test_another_alpha_costs_training_and_no_labels(own: Store) -> None:
    other, _ = run_text(own, "method.alpha=0.9")
    assert not {"tokens", "label", "fine_tune", "language_model[teacher]", "features[student]"} & set(built(other))
    assert "dagger_train[1]" in built(other)


def test_without_aggregation_the_first_round_is_the_same(own: Store) -> None:
    plain, _ = run_text(own, "method.kind=next_token")
    assert "dagger_train[1]" not in built(plain)
    assert "dagger_train[2]" in built(plain)
    assert not any(stage.stage == "dagger_aggregate" for stage in plain.stages)


def test_dad_asks_no_teacher(own: Store) -> None:
    dad, _ = run_text(own, "method.kind=dad")
    assert not any(stage.stage == "label" for stage in dad.stages)
    aggregated = next(stage for stage in dad.stages if stage.stage == "dagger_aggregate")
    assert not list(own.artifact("dagger_aggregate", aggregated.key).path.glob("labels-*"))


@pytest.mark.parametrize(
    "changes",
    [
        ["labels.kind=hidden"],
        ["labels.kind=sampled"],
        ["windows.mode=packed", "windows.predictions=6"],
        ["method.features=none"],
        ["student.trainable=all", "teacher.trainable=all"],
        ["method.warm_start=false", "method.trajectory_stride=4"],
    ],
    ids=lambda changes: changes[0],
)
def test_every_choice_runs_to_its_metrics(own: Store, changes: Sequence[str]) -> None:
    _, evaluation = run_text(own, "method.rounds=2", *changes)
    rows = pq.read_table(evaluation.path / "metrics.parquet").to_pylist()
    values = {(row["system"], row["metric"]): row["value"] for row in rows}
    assert values["dad_dagger", "perplexity"] > 1
    assert values["dad_dagger", "free_running_ce"] != values["student", "free_running_ce"]


def test_hidden_labels_bring_their_head_and_training_loads_no_teacher(
    own: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr("tasks.text.dagger_train.lone_head", refused)
    run, _ = run_text(own, "method.kind=next_token", "labels.kind=hidden")
    keys = {stage.name: stage.key for stage in run.stages}
    head = read_head(own.artifact("label", keys["label"]).path / HEAD, torch.device("cpu"))
    teacher = lone_head(own.artifact("fine_tune", keys["fine_tune"]), torch.device("cpu"), len(head))
    assert torch.equal(head.weight_VD, teacher.weight_VD)


def test_features_that_are_not_kept_change_nothing_but_a_rounding(own: Store) -> None:
    losses = []
    for features in ("float32", "none"):  # one round: in a second one, a rounding may choose another token
        _, evaluation = run_text(own, "method.rounds=1", f"method.features={features}")
        rows = pq.read_table(evaluation.path / "metrics.parquet").to_pylist()
        losses += [row["value"] for row in rows if (row["system"], row["metric"]) == ("dad_dagger", "cross_entropy")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("features", ["float32", "none"])
def test_trunks_in_bfloat16_are_of_stages_of_their_own_and_near_float32s(own: Store, features: str) -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        changes = ["method.rounds=1", f"method.features={features}", f"method.trunk_precision={precision}"]
        run, evaluation = run_text(own, *changes)
        rows = pq.read_table(evaluation.path / "metrics.parquet").to_pylist()
        found += [row["value"] for row in rows if (row["system"], row["metric"]) == ("dad_dagger", "cross_entropy")]
    frozen = {"features[teacher]", "features[student]"} if features != "none" else set()
    assert {*frozen, "fine_tune", "label", "dagger_train[1]"} <= set(built(run))
    assert not {"tokens", "language_model[teacher]", "language_model[student]"} & set(built(run))
    assert found[0] == pytest.approx(found[1], rel=2e-3)
    assert found[0] != found[1]


def test_what_a_round_adds_is_read_by_both_models_in_the_precision_of_trunks(own: Store) -> None:
    changes = ["labels.kind=hidden", "method.rounds=2", "method.features=float32", "method.trunk_precision=bfloat16"]
    run, _ = run_text(own, *changes)
    added = its(own, run, "dagger_aggregate[1]").path
    rows = pq.read_table(added / "aggregated-00000.parquet")["context"].to_pylist()
    states = torch.from_numpy(np.load(added / "aggregated-normed-00000.npy"))
    answers = torch.tensor(pq.read_table(added / "labels-00000.parquet")["hidden"].to_pylist())
    student, teacher = (load_model(its(own, run, each).path / "model") for each in ("dagger_train[1]", "fine_tune"))
    apart = {}
    for precision in ("float32", "bfloat16"):
        with torch.no_grad():
            below = trunk(student, torch.tensor(rows), 1, precision).behind_BXD  # type: ignore[arg-type]
            hidden = next_hidden(teacher, torch.tensor(rows), 1, precision)  # type: ignore[arg-type]
        apart[precision] = (below - states).abs().mean(), (hidden - answers).abs().mean()
    for exact, rounded in zip(*apart.values(), strict=True):
        assert rounded < exact / 3


@pytest.mark.parametrize(("trainable", "precision"), [("last_block", "bfloat16"), ("all", "float32")])
def test_a_student_all_of_which_is_trained_writes_unrounded(
    own: Store, monkeypatch: pytest.MonkeyPatch, trainable: str, precision: str
) -> None:
    of_student, of_teacher = [], []

    def student_writes(*given: Any, trunk_precision: str, **named: Any) -> Iterator[Aggregated]:
        of_student.append(trunk_precision)
        return aggregate(*given, trunk_precision=trunk_precision, **named)  # type: ignore[arg-type]

    def teacher_answers(model: Any, ids_BL: torch.Tensor, width: int, precision: str) -> torch.Tensor:
        of_teacher.append(precision)
        return next_hidden(model, ids_BL, width, precision)  # type: ignore[arg-type]

    monkeypatch.setattr(dagger_aggregate, "aggregate", student_writes)
    monkeypatch.setattr(dagger_aggregate, "next_hidden", teacher_answers)
    run_text(own, "method.rounds=2", "method.trunk_precision=bfloat16", f"student.trainable={trainable}")
    assert set(of_student) == {precision}
    assert set(of_teacher) == {"bfloat16"}


def test_splits_are_contiguous_and_no_token_is_in_two(first: tuple[Store, Run, Artifact]) -> None:
    corpus = made(first, "tokens")
    parts = [read_tokens(corpus, split).tolist() for split in ("train", "validation", "test")]
    tokenizer = load_tokenizer(corpus.path / "tokenizer")
    text = " ".join((first[0].root / "path.txt").read_text().split())
    assert tokenizer.decode([token for part in parts for token in part], skip_special_tokens=True) == text
    lengths = [len(part) / sum(map(len, parts)) for part in parts]
    assert lengths == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_the_cross_entropy_is_that_of_the_stock_model_on_exact_windows(first: tuple[Store, Run, Artifact]) -> None:
    *_, evaluation = first
    corpus, trained = made(first, "tokens"), made(first, "dagger_train[3]")
    model, text = load_model(trained.path / "model"), read_tokens(corpus, "test")
    targets = window_targets(len(text), 8, 3)
    with torch.no_grad():
        logits = model(contexts(text, targets, 8)).logits[:, -1, : len(load_tokenizer(corpus.path / "tokenizer"))]
    nats = float(torch.nn.functional.cross_entropy(logits, text[targets]))
    rows = pq.read_table(evaluation.path / "metrics.parquet").to_pylist()
    values = {row["metric"]: row["value"] for row in rows if row["system"] == "dad_dagger"}
    assert values["cross_entropy"] == pytest.approx(nats, abs=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(nats), rel=1e-5)
    assert values["perplexity"] == pytest.approx(2 ** values["cross_entropy_bits"], rel=1e-9)


def test_aggregated_rows_keep_where_they_come_from(first: tuple[Store, Run, Artifact]) -> None:
    corpus, aggregated = made(first, "tokens"), made(first, "dagger_aggregate[2]")
    text = read_tokens(corpus, "train").tolist()
    rows = pq.read_table(aggregated.path / "aggregated-00000.parquet").to_pylist()
    assert {row["round"] for row in rows} == {2}
    for row in rows:
        assert row["target"] == text[row["position"]]
        assert row["position"] == row["trajectory"] + 8 + row["step"]
        true = text[row["position"] - 8 : row["position"] - row["step"]]
        assert row["context"][: 8 - row["step"]] == true
        assert row["left"] == (row["context"][-1] != text[row["position"] - 1])


def test_rounds_and_steps_can_be_asked_for_in_sql(first: tuple[Store, Run, Artifact]) -> None:
    store, *_ = first
    rows = query(store, "SELECT \"round\", step, value FROM dagger_rounds WHERE metric = 'free_running_ce'").to_pylist()
    assert {(row["round"], row["step"]) for row in rows} == {(r, s) for r in range(4) for s in range(4)}
    left = query(store, 'SELECT "round", step, avg("left"::INT) AS share FROM aggregated GROUP BY ALL').to_pylist()
    assert {(row["round"], row["step"]) for row in left} == {(r, s) for r in (1, 2) for s in (1, 2, 3)}
    assert all(0 <= row["share"] <= 1 for row in left)
    (dataset,) = query(store, "SELECT DISTINCT dataset FROM runs").to_pylist()
    assert dataset == {"dataset": "path"}


def test_labels_say_their_size_and_what_they_lose(first: tuple[Store, Run, Artifact]) -> None:
    stats = made(first, "label").manifest().stats
    assert 0 < stats["bytes_per_token"] < 1000
    assert stats["kl_to_dense"] > 0
    assert 0 < stats["mass_elsewhere"] < 1


def test_the_last_rounds_student_can_be_taken_away(first: tuple[Store, Run, Artifact], tmp_path: Path) -> None:
    store, run, _ = first
    assert export_run(store, run.record, tmp_path / "out") == "AutoModelForCausalLM"
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert weights == (made(first, "dagger_train[3]").path / "model" / "model.safetensors").read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("a student distilled by DaD-DAgger", "| pretraining |", "Fine-tuned on the text", "perplexity"):
        assert text in card
    assert str(store.root) not in card


class Listener(NullReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, text: str) -> None:
        self.said.append(text)


def test_a_teacher_that_is_no_better_is_said_loudly(own: Store) -> None:
    heard = Listener()
    # a teacher that has learnt nothing against a student that has
    changes = ["teacher.pretrain.max_steps=1", "teacher.fit=null", "student.pretrain.max_steps=60", "method.rounds=1"]
    _, evaluation = run_text(own, *changes, reporter=heard)
    assert any("the teacher is no better than the student it teaches" in text for text in heard.said)
    assert any("the teacher is no better than" in text for text in evaluation.manifest().stats["warnings"])


def test_a_teacher_that_is_better_is_not_complained_of(first: tuple[Store, Run, Artifact], own: Store) -> None:
    heard = Listener()
    changes = ["teacher.pretrain.max_steps=150", "method.rounds=1", "student.pretrain.max_steps=1", "method.epochs=1"]
    run_text(own, *changes, reporter=heard)
    assert heard.said == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["windows.context=33"], "teacher has 32 positions, and is given 33 tokens at once\n"),
        (["windows.context=30", "windows.mode=packed", "windows.predictions=4"], "is given 33 tokens at once"),
        (["method.alpha=1.5"], r"alpha must be in \[0, 1\], got 1.5"),
        (["method.kind=dad", "method.alpha=0.5"], "dad has alpha 1, got 0.5\n"),
        (["method.trunk_precision=float16"], "trunk_precision.*float32.*bfloat16"),
        (["method.horizon=1"], "horizon must be at least 2"),
        (["teacher.fit.alpha=0.5"], "fit.alpha must be 1"),
        (["limit=60"], "validation has 6 tokens, which is shorter than a window of 9\n"),
        (["limit=110"], "test has 11 tokens, which is shorter than a trajectory of 12\n"),
        (["limit=5"], "which leaves validation empty|which leaves test empty"),
        (["dataset.pretraining_path=null"], "needs text to be trained on\n"),
        (["student.shape=null", "student.pretrain=null", "student.name=/nowhere"], "does not exist"),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_what_cannot_end_well_is_refused_in_a_line(tmp_path: Path, changes: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run_text(Store(tmp_path), *changes)


def test_another_vocabulary_is_refused_before_anything_starts(first: tuple[Store, Run, Artifact], own: Store) -> None:
    model = made(first, "dagger_train[1]").path / "model"
    heard: list[Any] = []

    class Watch(NullReporter):
        def stage_started(self, stage: str, key: str, why: str) -> None:
            heard.append(stage)

    # a teacher with a tokenizer of its own, trained here, and a named student that reads other tokens
    changes = ["student.shape=null", "student.pretrain=null", f"student.name={model}", "teacher.vocab_size=32"]
    with pytest.raises(ValueError, match="different tokenizers"):
        run_text(own, *changes, reporter=Watch())
    assert heard == ["tokens", "language_model[student]"]


def test_a_named_student_with_the_same_vocabulary_goes_on_from_its_weights(
    first: tuple[Store, Run, Artifact], own: Store
) -> None:
    model = made(first, "dagger_train[1]").path / "model"
    changes = ["student.shape=null", "student.pretrain=null", f"student.name={model}", "method.rounds=1"]
    run, _ = run_text(own, *changes)
    assert "dagger_train[1]" in built(run)


def test_texts_are_the_same_every_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = write_texts(tmp_path / "a"), write_texts(tmp_path / "b")
    assert [Path(a[name]).read_text() for name in ("path", "pretraining_path")] == [
        Path(b[name]).read_text() for name in ("path", "pretraining_path")
    ]
