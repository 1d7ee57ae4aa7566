"""A model that cannot be sharded, or spread over devices, is refused before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kd_core.models.backends.lora import LoraSettings
from kd_core.models.shapes import T5Shape
from kd_core.train.llmr import LLMRSettings
from kd_core.train.state import OptimizerSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.compute.completions import EndpointSettings
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.preflight.sharded import check_sharded, check_spread
from tests.tasks.tiny_models import write_bart, write_causal, write_llama, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.engine.settings import Sharded

FAMILY = r"a model of type '{}' cannot be sharded: .*Llama.*\nleave it out of runtime.sharded"


def settings(teacher: Path, student: Path | None = None, **more: Any) -> dict[str, Any]:
    own = {"name": str(student)} if student is not None else {"from_": "teacher"}
    return {"teacher": TeacherSettings(name=str(teacher)), "student": StudentSettings(**own)} | more


def test_layers_that_run_on_packed_rows_can_be_shared_out(tmp_path: Path) -> None:
    llama = write_llama(tmp_path / "llama")
    check_sharded("both", settings(llama))
    check_sharded("teacher", settings(llama, write_causal(tmp_path / "neo")))
    elsewhere = settings(tmp_path) | {"teacher": TeacherSettings(name="somebody/something")}
    check_sharded("both", elsewhere)  # seen when it is there
    check_sharded("none", settings(write_bart(tmp_path / "bart")))


@pytest.mark.parametrize(("write", "family"), [(write_model, "t5"), (write_bart, "bart"), (write_causal, "gpt_neo")])
def test_other_families_are_refused(tmp_path: Path, write: Any, family: str) -> None:
    given = {"own_head": True} if family == "t5" else {}
    model, llama = write(tmp_path / "model", **given), write_llama(tmp_path / "llama")
    for sharded, pair in (("teacher", (model, llama)), ("student", (llama, model)), ("both", (model, None))):
        role = "teacher" if sharded == "both" else sharded
        with pytest.raises(ValueError, match=f"^{role}: " + FAMILY.format(family)):
            check_sharded(sharded, settings(*pair))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sharded", "more", "said"),
    [
        ("student", {"student": StudentSettings(shape=T5Shape())}, r"student\.shape describes a small model"),
        (
            "both",
            {"teacher": TeacherSettings(shape=T5Shape(), fit=SupervisedSettings())},
            r"teacher\.shape describes a small model",
        ),
        ("student", {"student": StudentSettings(from_="teacher", lora=LoraSettings())}, "a student with an adapter"),
        (
            "teacher",
            {"student": StudentSettings(from_="teacher", lora=LoraSettings())},
            "a student that is an adapter on its teacher holds the teacher's weights whole\nleave it out of",
        ),
        (
            "student",
            {"method": LLMRSettings(optimizer=OptimizerSettings(precision="bfloat16_weights"))},
            r"method\.optimizer: a sharded student has no precision bfloat16_weights\nset bfloat16",
        ),
        (
            "teacher",
            {"windows": None},
            r"runtime\.sharded is for runs on pairs, and this one is on running text\nleave",
        ),
        (
            "teacher",
            {
                "teacher": TeacherSettings(
                    endpoint=EndpointSettings(url="http://localhost:1/v1", model="b"), tokenizer="a/b"
                )
            },
            "the teacher is behind a server: there is nothing of it to be sharded",
        ),
    ],
)
def test_what_cannot_be_sharded_is_said(tmp_path: Path, sharded: Sharded, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_sharded(sharded, settings(write_llama(tmp_path)) | more)


def test_a_decoder_of_stock_layers_can_be_spread(tmp_path: Path) -> None:
    llama, neo = write_llama(tmp_path / "llama"), write_causal(tmp_path / "neo")
    check_spread(2, settings(llama, neo))
    check_spread(2, settings(llama) | {"windows": None})
    check_spread(2, settings(tmp_path) | {"teacher": TeacherSettings(name="somebody/something")})
    check_spread(1, settings(neo))
    check_spread(2, {"windows": None})  # of a comparison, whose cells have the models


@pytest.mark.parametrize(("write", "family"), [(write_model, "t5"), (write_bart, "bart"), (write_causal, "gpt_neo")])
def test_teachers_of_other_families_are_not_spread(tmp_path: Path, write: Any, family: str) -> None:
    given = {"own_head": True} if family == "t5" else {}
    model = write(tmp_path / "model", **given)
    with pytest.raises(ValueError, match=f"^teacher: a model of type '{family}' cannot be spread .*\nleave runtime.t"):
        check_spread(2, settings(model, write_llama(tmp_path / "llama")))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"teacher": TeacherSettings(shape=T5Shape(), fit=SupervisedSettings())},
            r"teacher\.shape describes a small model of a family that is not spread\nleave runtime\.teacher_d",
        ),
        ({"windows": None, "student": StudentSettings(shape=T5Shape())}, r"student\.shape describes a small model"),
        (
            {"student": StudentSettings(from_="teacher", lora=LoraSettings())},
            "a student that is an adapter on its teacher holds the teacher's weights whole\nleave",
        ),
        (
            {
                "teacher": TeacherSettings(
                    endpoint=EndpointSettings(url="http://localhost:1/v1", model="b"), tokenizer="a/b"
                )
            },
            "the teacher is behind a server: there is nothing of it to be spread",
        ),
    ],
)
def test_what_cannot_be_spread_is_said(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_spread(2, settings(write_llama(tmp_path)) | more)
