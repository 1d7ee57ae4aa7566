"""The teacher's labels of its outputs: what is kept, that a kill costs a shard, and what is taught by them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from kd_core.models.loading import load_model, load_tokenizer
from kd_core.models.policy import shift_right
from kd_core.models.prompts import Prompts
from kd_core.rollout.sampling import SamplingSettings
from kd_core.rollout.teacher_labels import LabelSettings
from kd_core.train.batches import BatchSettings
from kd_core.train.divergence import ForwardKLSettings, GKDSettings, JSSettings
from kd_core.train.state import OptimizerSettings
from tasks.compute import models
from tasks.pairs.divergence import divergence
from tasks.pairs.labels import label_outputs as stage_module
from tasks.pairs.labels.label_outputs import label_outputs
from tasks.pairs.pre_distill import pre_distill
from tasks.pairs.prepare import prepare
from tasks.pairs.score import score
from tasks.pairs.seqkd import SeqKDSettings, seqkd
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings, teacher
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter
from tasks.store.stage import open_run
from tests.tasks.tiny_models import write_model
from tests.tasks.tiny_runs import RUNTIME, SCORE, TRAINING, write_pairs

PROMPT = "reply to {source}"
SHORT: dict[str, Any] = {
    "steps": 4,
    "max_source_tokens": 16,
    "sampling": SamplingSettings(max_new_tokens=5),  # outputs of 6 tokens are cut
    "batch": BatchSettings(micro_batch_rows=8, micro_batches=2),
    "optimizer": OptimizerSettings(learning_rate=1e-2),
}


@dataclass
class Made:
    """A store with all that labels are made of."""

    store: Store
    corpus: Artifact
    teacher: Artifact
    outputs: Artifact
    student: Artifact

    def labels(self, **settings: Any) -> Artifact:
        return label_outputs(
            corpus=self.corpus,
            teacher=self.teacher,
            outputs=self.outputs,
            prompt=PROMPT,
            max_source_tokens=32,
            settings=LabelSettings(batch_rows=8, **settings),
            seed=0,
        )

    def taught(self, settings: Any, labels: Artifact | None) -> Artifact:
        return divergence(
            corpus=self.corpus,
            teacher=self.teacher,
            outputs=self.outputs,
            student=self.student,
            prompt=Prompts(PROMPT),
            settings=settings,
            seed=0,
            **({} if labels is None else {"labels": labels}),
        )


def make(root: Path, model: Path) -> Made:
    store = Store(root / "store")
    write_model(root / "t5", own_head=False, seed=1)
    with open_run(store, name="made", runtime=RUNTIME):
        corpus = prepare(dataset=write_pairs(root / "pairs.csv"), seed=0, limit=None)
        taught_by = teacher(corpus=corpus, settings=TeacherSettings(name=str(model)), seed=0)
        outputs = score(corpus=corpus, teacher=taught_by, prompt=PROMPT, settings=SCORE)
        student = pre_distill(
            corpus=corpus,
            teacher=taught_by,
            outputs=outputs,
            student=StudentSettings(name=str(root / "t5")),
            prompt=Prompts(PROMPT),
            settings=TRAINING,
            seed=0,
        )
    return Made(store, corpus, taught_by, outputs, student)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("labels")
    return make(root, write_model(root / "t0", own_head=True))


@pytest.fixture
def made(ready: Made) -> Iterator[Made]:
    """The same, in a run."""
    with open_run(ready.store, name="test", runtime=RUNTIME):
        yield ready


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "SHARD_OUTPUTS", 20)


def rows_of(artifact: Artifact, kind: str) -> list[dict[str, Any]]:
    return [row for path in sorted(artifact.path.glob(f"{kind}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def weights(artifact: Artifact) -> torch.Tensor:
    found = load_file(artifact.path / "model" / "model.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])


def logged(artifact: Artifact) -> dict[tuple[int, str], float]:
    rows = pq.read_table(artifact.path / "training_log.parquet").to_pylist()
    return {(row["step"], row["metric"]): row["value"] for row in rows}


@pytest.mark.usefixtures("small_shards")
def test_a_row_stands_for_every_token_of_the_outputs_in_their_order(made: Made) -> None:
    labels = made.labels(top_k=5)
    places = [(row["id"], t) for row in rows_of(made.outputs, "outputs") for t in range(len(row["token_ids"]))]
    assert [(row["id"], row["position"]) for row in rows_of(labels, "labels")] == places
    assert len(list(labels.path.glob("labels-*.parquet"))) == 4
    assert not list(labels.path.glob("head*")), "only hidden states need one"
    stats = labels.manifest().stats
    assert stats["tokens"] == len(places)
    assert stats["bytes_per_token"] * len(places) == sum(p.stat().st_size for p in labels.path.glob("labels-*"))
    assert stats["kl_to_dense"] > 0
    assert 0 < stats["mass_elsewhere"] < 1


def test_labels_are_the_best_of_what_the_stock_model_says(made: Made) -> None:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows_of(made.labels(top_k=5, tail="bucket"), "labels"):
        found.setdefault(row["id"], []).append(row)
    location = made.store.root.parent / "t0"
    model, tokenizer = load_model(location), load_tokenizer(location)
    sources = {row["id"]: row["source"] for row in pq.read_table(made.corpus.path / "train.parquet").to_pylist()}
    for row in rows_of(made.outputs, "outputs")[::9]:
        source = tokenizer(PROMPT.format(source=sources[row["id"]]), return_tensors="pt")
        inputs = shift_right(torch.tensor([row["token_ids"]]), model.config.decoder_start_token_id)
        with torch.no_grad():
            logits = model(**source, decoder_input_ids=inputs).logits[0, :, :160]  # 160 tokens have names
        best, ids = logits.log_softmax(-1).topk(5)
        assert [label["token_ids"] for label in found[row["id"]]] == ids.tolist()
        ours = torch.tensor([label["log_probs"] for label in found[row["id"]]], dtype=torch.float32)
        torch.testing.assert_close(ours, best, atol=4e-3, rtol=1e-3)  # float16


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("spoilt", [False, True], ids=["killed", "killed, and a shard cut short"])
def test_a_kill_costs_the_shard_that_was_not_finished(
    ready: Made, monkeypatch: pytest.MonkeyPatch, spoilt: bool
) -> None:
    settings: dict[str, Any] = {"kind": "sampled", "draws": 6 + spoilt}
    begun: list[int] = []
    make_labels = stage_module._labels

    def broken_off(teacher: Any, pairs: Any, index: torch.Tensor, *more: Any) -> Any:
        begun.append(int(index[0]))
        if begun == [0, 20, 40]:
            raise KeyboardInterrupt
        return make_labels(teacher, pairs, index, *more)

    heard: list[str] = []

    class Ear(NullReporter):
        def warning(self, text: str) -> None:
            heard.append(text)

    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "_labels", broken_off)
        with open_run(ready.store, name="killed", runtime=RUNTIME, planning=True) as plan:
            ready.labels(**settings)
        kept = ready.store.checkpoint_dir(ready.store.artifact("label_outputs", plan.plan[-1].key))
        with pytest.raises(KeyboardInterrupt), open_run(ready.store, name="killed", runtime=RUNTIME):
            ready.labels(**settings)
        if spoilt:
            path = kept / "labels-00001.parquet"
            path.write_bytes(path.read_bytes()[:-7])
        with open_run(ready.store, name="again", runtime=RUNTIME, reporter=Ear()):
            resumed = ready.labels(**settings)
    assert begun == [0, 20, 40, *([20] if spoilt else []), 40, 60]
    assert [text.endswith("dropped, to be made anew") for text in heard] == [True] * spoilt
    other = Store(ready.store.root.parent / f"other-{spoilt}")
    shutil.copytree(ready.store.root / "artifacts", other.root / "artifacts", dirs_exist_ok=True)
    shutil.rmtree(other.root / "artifacts" / "label_outputs")
    with open_run(other, name="whole", runtime=RUNTIME):
        whole = ready.labels(**settings)
    assert whole.path != resumed.path
    assert whole.manifest().files == resumed.manifest().files


def test_forward_kl_from_hidden_states_is_the_resident_teachers_to_float16s_accuracy(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = made.labels(kind="hidden")
    assert (labels.path / "head.safetensors").exists()
    resident = made.taught(ForwardKLSettings(**SHORT), None)
    loaded: list[Path] = []
    load = models.load_model

    def noted(location: Any, *more: Any, **named: Any) -> Any:
        loaded.append(Path(location))
        return load(location, *more, **named)

    monkeypatch.setattr(models, "load_model", noted)
    offline = made.taught(ForwardKLSettings(**SHORT), labels)
    assert loaded == [made.student.path / "model"], "the teacher's weights were read"
    before, there, here = (weights(each) for each in (made.student, resident, offline))
    moved = (there - before).norm()
    assert moved > 0
    assert (here - there).norm() < 2e-3 * moved
    assert not torch.equal(here, there), "float16 rounds: nothing was read"


def test_what_can_be_known_without_a_teacher_is_logged(made: Made) -> None:
    offline = made.taught(ForwardKLSettings(**SHORT), made.labels(kind="hidden"))
    resident = made.taught(ForwardKLSettings(**SHORT), None)
    ours, theirs = logged(offline), logged(resident)
    for name in ("length", "truncated", "equal", "distinct_2", "repetition"):
        for kind in ("", "sampled_"):
            assert ours[0, f"validation_{kind}{name}"] == theirs[0, f"validation_{kind}{name}"]
    assert ours[4, "validation_loss"] != ours[0, "validation_loss"]
    assert not any("reward" in name or "kl" in name for _, name in ours)
    assert offline.manifest().stats["validation_loss"] == ours[4, "validation_loss"]


@pytest.mark.parametrize("settings", [JSSettings(**SHORT), GKDSettings(**SHORT, student_share=0.0)])
def test_js_and_gkd_read_hidden_states_too(made: Made, settings: Any) -> None:
    before = weights(made.student)
    there, here = (weights(made.taught(settings, labels)) for labels in (None, made.labels(kind="hidden")))
    assert (here - there).norm() < 2e-2 * (there - before).norm()


@pytest.mark.parametrize("kind", [{"kind": "topk"}, {"kind": "topk", "tail": "bucket"}, {"kind": "sampled"}])
def test_every_kind_teaches(made: Made, kind: dict[str, Any]) -> None:
    settings = ForwardKLSettings(**SHORT | {"steps": 12, "validate_every": 0})
    log = logged(made.taught(settings, made.labels(**kind)))
    assert log[12, "loss"] < log[1, "loss"]


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_soft_seqkd_weighs_what_was_written_against_the_distributions(made: Made, alpha: float) -> None:
    labels = made.labels(kind="hidden")
    common: dict[str, Any] = {
        "corpus": made.corpus, "outputs": made.outputs, "student": made.student, "prompt": Prompts(PROMPT), "seed": 0
    }  # fmt: skip
    soft = seqkd(settings=SeqKDSettings(**SHORT, alpha=alpha), labels=labels, **common)
    log = logged(soft)
    for step in (1, 4):
        mixed = alpha * log[step, "nll"] + (1 - alpha) * log[step, "kd"]
        assert log[step, "loss"] == pytest.approx(mixed, rel=1e-5)
    hard = logged(seqkd(settings=SeqKDSettings(**SHORT), **common))
    assert log[1, "nll"] == pytest.approx(hard[1, "loss"], rel=0.05)  # of 160 tokens instead of 192
    if alpha == 0:  # KD is KL and the teacher's entropy: the gradient is forward KL's
        kl = ForwardKLSettings(**SHORT)
        assert (weights(soft) - weights(made.taught(kl, labels))).norm() < 1e-3 * weights(soft).norm()


def test_pre_distillation_learns_from_labels(made: Made) -> None:
    arguments: dict[str, Any] = {
        "corpus": made.corpus,
        "teacher": made.teacher,
        "outputs": made.outputs,
        "student": StudentSettings(name=str(made.store.root.parent / "t5")),
        "prompt": Prompts(PROMPT),
        "seed": 0,
    }
    soft = pre_distill(settings=replace(TRAINING, alpha=0.5), labels=made.labels(kind="hidden"), **arguments)
    assert {"nll", "kd"} <= {name for _, name in logged(soft)}
    assert not torch.equal(weights(soft), weights(made.student))
    with pytest.raises(ValueError, match=r"^alpha 0\.5 needs the teacher's labels of its outputs\nset labels\.kind"):
        pre_distill(settings=replace(TRAINING, alpha=0.5), **arguments)


def test_labels_of_other_outputs_or_of_another_teacher_are_refused(made: Made) -> None:
    labels = made.labels(top_k=5)
    fewer = score(corpus=made.corpus, teacher=made.teacher, prompt=PROMPT, settings=replace(SCORE, max_rows=30))
    with pytest.raises(ValueError, match=r"are of another outputs than .*\nmake labels of these outputs"):
        replace(made, outputs=fewer).taught(ForwardKLSettings(**SHORT), labels)
    path = write_model(made.store.root.parent / "other", own_head=True, seed=7)
    other = teacher(corpus=made.corpus, settings=TeacherSettings(name=str(path)), seed=0)
    with pytest.raises(ValueError, match=r"are of another teacher than .*\nmake labels of these outputs"):
        replace(made, teacher=other).taught(ForwardKLSettings(**SHORT), labels)


def test_a_student_of_another_tokenizer_is_refused(made: Made) -> None:
    copied = made.store.root.parent / "foreign"
    shutil.copytree(made.student.path / "model", copied / "model")
    file, word = copied / "model" / "tokenizer.json", load_tokenizer(copied / "model").convert_ids_to_tokens(40)
    text = file.read_text(encoding="utf-8")
    assert f'"{word}"' in text
    file.write_text(text.replace(f'"{word}"', '"another"'), encoding="utf-8")
    foreign = Artifact("pre_distill", "f" * 32, copied)
    with pytest.raises(ValueError, match="teacher and student have different tokenizers"):
        models.load_alone(foreign, made.teacher, torch.device("cpu"))
    assert models.load_alone(made.student, made.teacher, torch.device("cpu")).num_tokens == 160


def test_states_beyond_float16_are_kept_in_float32_and_it_is_said(tmp_path: Path) -> None:
    model = write_model(tmp_path / "t0", own_head=True)
    tensors = load_file(model / "model.safetensors")
    tensors["decoder.final_layer_norm.weight"] *= 1e6  # and the head takes it back: the same distributions
    tensors["lm_head.weight"] /= 1e6
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    large = make(tmp_path, model)
    heard: list[str] = []

    class Ear(NullReporter):
        def warning(self, text: str) -> None:
            heard.append(text)

    with open_run(large.store, name="test", runtime=RUNTIME, reporter=Ear()):
        labels = large.labels(kind="hidden")
        there, here = (large.taught(ForwardKLSettings(**SHORT), each) for each in (None, labels))
    said = "the teacher's final states exceed 65,504, the most that float16 can hold: they are kept in float32"
    assert heard[:1] == [said] == labels.manifest().stats["warnings"]
    states = np.array([row["hidden"] for row in rows_of(labels, "labels")])
    assert np.abs(states).max() > 65_504
    moved = (weights(there) - weights(large.student)).norm()
    assert (weights(here) - weights(there)).norm() < 1e-3 * moved
