"""Labels of a run on pairs: made where something reads them, and once; what does not go together is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.catalogue import override
from flows.distill_outline import OUTLINE, pipeline
from flows.methods import check_labels, reads_labels
from flows.settings import validate
from kd_core.models.shapes import T5Shape
from kd_core.rollout.teacher_labels import LabelSettings
from kd_core.train.divergence import ForwardKLSettings, GKDSettings, JSSettings, ReverseKLSettings
from kd_core.train.llmr import LLMRSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.pairs.seqkd import SeqKDSettings
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.store.artifacts import Store
from tasks.store.stage import Run, open_run
from tests.tasks.tiny_models import write_model
from tests.tasks.tiny_runs import EVALUATION, RUNTIME, SCORE, TRAINING, write_pairs

HARD, HIDDEN = SupervisedSettings(), LabelSettings(kind="hidden")
SHORT: dict[str, Any] = {
    "kind": "forward_kl",
    "steps": 2,
    "max_source_tokens": 16,
    "sampling": {"max_new_tokens": 6},
    "batch": {"micro_batch_rows": 8, "micro_batches": 1},
}


def run(store: Store, *changes: str, planning: bool = False) -> Run:
    given = {"method": SHORT, "labels": {"kind": "hidden"}}
    known = {name: OUTLINE.parameters[name] for name in given}
    with open_run(store, name="tiny", runtime=RUNTIME, planning=planning) as opened:
        pipeline(
            dataset=write_pairs(store.root / "pairs.csv"),
            teacher=TeacherSettings(name=str(store.root.parent / "t0"), prompt="say {source}"),
            student=StudentSettings(name=str(store.root.parent / "t5")),
            score=SCORE,
            pre_distill=TRAINING,
            evaluation=EVALUATION,
            **validate(known, override(given, changes)),
        )
    return opened


def test_another_learning_rate_reads_the_labels_and_computes_none(tmp_path: Path) -> None:
    write_model(tmp_path / "t0", own_head=True)
    write_model(tmp_path / "t5", own_head=False, seed=1)
    store = Store(tmp_path / "store")
    first = [each.stage for each in run(store).stages]
    assert first[:6] == ["prepare", "teacher", "score", "label_outputs", "pre_distill", "divergence"]

    def plan(*changes: str) -> dict[str, str]:
        return {row.stage: row.status for row in run(store, *changes, planning=True).plan}

    other = plan("method.optimizer.learning_rate=0.01")
    assert [other[name] for name in ("label_outputs", "pre_distill", "divergence[forward_kl]")] == [
        "hit",
        "hit",
        "miss",
    ]
    assert plan("labels.kind=topk")["label_outputs"] == "miss"
    assert plan("labels.batch_rows=64")["label_outputs"] == "hit"
    unread = plan("method.kind=reverse_kl")
    assert "label_outputs" not in unread
    assert plan("method.kind=js")["label_outputs"] == "hit"
    soft = plan('method={"kind": "seqkd", "alpha": 0.5, "steps": 2}')
    assert (soft["label_outputs"], soft["seqkd"]) == ("hit", "miss")
    hard = plan('method={"kind": "seqkd", "steps": 2}')
    assert "label_outputs" not in hard


def test_who_reads_labels() -> None:
    assert reads_labels(ForwardKLSettings())
    assert reads_labels(JSSettings())
    assert reads_labels(GKDSettings())
    assert reads_labels(SeqKDSettings(alpha=0.5))
    for method in (SeqKDSettings(), LLMRSettings(), ReverseKLSettings(), GKDSettings(student_share=1)):
        assert not reads_labels(method)


@pytest.mark.parametrize(
    ("labels", "pre_distill", "method", "says"),
    [
        (
            None,
            SupervisedSettings(alpha=0.5),
            LLMRSettings(),
            r"pre_distill\.alpha 0\.5 learns from .* none are kept\nset",
        ),
        (None, HARD, SeqKDSettings(alpha=0.0), r"method\.alpha 0\.0 learns from the teacher's .* none are kept\nset"),
        (LabelSettings(kind="sampled"), HARD, JSSettings(), r"js is not linear in p: sampled labels bias it\nset"),
        (LabelSettings(kind="sampled"), HARD, GKDSettings(), r"gkd is not linear in p: sampled labels bias it\nset"),
        (LabelSettings(), HARD, GKDSettings(beta=1.0), r"gkd with beta 1 is the reverse KL, .* may round to 0\nset"),
        (
            HIDDEN,
            HARD,
            JSSettings(max_source_tokens=16),
            r"method reads 16 tokens of a source, and labels are of what the teacher made of 0\n"
            r"set method\.max_source_tokens=0, or leave labels out",
        ),
        (
            HIDDEN,
            SupervisedSettings(alpha=0.5, max_source_tokens=8),
            JSSettings(),
            r"pre_distill reads 8 tokens of a source, .*\nset pre_distill\.max_source_tokens=0",
        ),
        (HIDDEN, HARD, ForwardKLSettings(keep="reward"), r"keep reward asks the teacher, for which labels stand\nset"),
    ],
)
def test_what_does_not_go_together_is_refused(
    labels: LabelSettings | None, pre_distill: SupervisedSettings, method: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        check_labels(labels, pre_distill, method, max_source_tokens=0)


def test_what_is_advised_for_a_teacher_behind_a_server_works_there() -> None:
    topk = LabelSettings(tail="bucket")
    with pytest.raises(ValueError, match=r"\nset method\.student_share=1, or method\.beta below 1$"):
        check_labels(topk, HARD, GKDSettings(beta=1.0), 0, served=True)
    for method in (GKDSettings(beta=1.0, student_share=1.0), GKDSettings(beta=0.9)):
        assert check_labels(topk, HARD, method, 0, served=True) == []


def test_labels_that_nothing_reads_are_remarked_on() -> None:
    (said,) = check_labels(HIDDEN, HARD, LLMRSettings(), 0)
    assert said == "labels are not made: neither method llmr nor pre_distill with alpha 1 would read them"
    assert check_labels(HIDDEN, SupervisedSettings(alpha=0.5), LLMRSettings(), 0) == []
    assert check_labels(HIDDEN, HARD, JSSettings(keep="reward"), 0) == [], (
        "the teacher is there for the student's outputs"
    )
    assert check_labels(None, HARD, LLMRSettings(max_source_tokens=8), 0) == []


def test_a_teacher_that_is_fitted_has_no_distributions_to_learn() -> None:
    with pytest.raises(ValueError, match=r"fit has no teacher: alpha must be 1, got 0\.5\nleave fit\.alpha out"):
        TeacherSettings(shape=T5Shape(), fit=SupervisedSettings(alpha=0.5))
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 1\.5"):
        SupervisedSettings(alpha=1.5)
