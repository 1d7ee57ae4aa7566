"""Causal models without positions for a run are refused before anything is trained, and no others are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.distill_outline import pipeline
from kd_core.models.loading import load_tokenizer
from kd_core.models.prompts import Prompts, wrapped_rows
from kd_core.models.shapes import GPTNeoShape, T5Shape, build_model
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.beam_search import BeamSettings
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import BatchSettings
from kd_core.train.state import TrainState
from kd_core.train.supervised import Pairs, SupervisedSettings, train_supervised
from tasks.pairs.exposure import ExposureSettings
from tasks.pairs.inputs import read_split
from tasks.pairs.prepare import prepare
from tasks.pairs.score import ScoreSettings
from tasks.pairs.seqkd import SeqKDSettings
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings, teacher
from tasks.preflight.positions import Need, check_room, needs
from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter
from tasks.store.stage import open_run
from tests.tasks.tiny_models import write_bart
from tests.tasks.tiny_runs import EVALUATION, METHOD, RUNTIME, SCORE, TRAINING, write_pairs

SHAPE = GPTNeoShape(hidden_size=16, num_heads=2)
PROMPT, BARE = "say {source} now", Prompts("{source}")
Made = tuple[Store, Artifact, Artifact]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    store = Store(tmp_path_factory.mktemp("store"))
    with open_run(store, name="tiny", runtime=RUNTIME):
        corpus = prepare(dataset=write_pairs(store.root / "pairs.csv"), seed=0, limit=None)
        teacher_model = teacher(
            corpus=corpus, settings=TeacherSettings(shape=SHAPE, fit=TRAINING, vocab_size=60), seed=0
        )
        yield store, corpus, teacher_model


def sized(positions: int) -> tuple[TeacherSettings, StudentSettings]:
    shape = replace(SHAPE, max_position_embeddings=positions)
    return TeacherSettings(shape=shape, fit=TRAINING), StudentSettings(shape=shape)


def longest(made: Made, split: str, prompt: str) -> int:
    """Tokens of the longest prompt, uncut."""
    tokenizer = load_tokenizer(made[2].path / "model")
    texts = [prompt.replace("{source}", each) for each in read_split(made[1], split, ("source",))["source"]]
    return int(TokenRows.encode(tokenizer, texts, 999, ends=prompt == "{source}").lengths.max())


@pytest.mark.parametrize(("judged", "more"), [(False, 0), (True, 1)])
@pytest.mark.parametrize("prompt", [PROMPT, "{source}"])
def test_judging_takes_one_position_more_than_sampling(made: Made, prompt: str, judged: bool, more: int) -> None:
    need = Need(
        stage="method",
        role="teacher",
        prompted=True,
        split="train",
        rows=None,
        max_source_tokens=500,  # by the settings alone too many
        tokens=6,
        judged=judged,
    )
    just = longest(made, "train", prompt) + 6 - 1 + more
    check_room(*made[1:], *sized(just), Prompts(prompt), need)
    what = "judges" if judged else "is given"
    said = rf"method: the teacher has {just - 1} positions, and {what} up to {just} tokens at once\nlower lengths\."
    with pytest.raises(ValueError, match=said):
        check_room(*made[1:], *sized(just - 1), Prompts(prompt), need)
    check_room(*made[1:], TeacherSettings(name="some/t5"), StudentSettings(shape=T5Shape()), Prompts(prompt), need)


def test_a_bound_that_the_settings_keep_needs_no_look_at_the_texts(made: Made, tmp_path: Path) -> None:
    need = Need(stage="score", role="student", prompted=False, split="train", rows=None, max_source_tokens=10, tokens=6)
    nothing = Artifact("prepare", "0" * 32, tmp_path)
    check_room(nothing, made[2], *sized(15), BARE, need)
    with pytest.raises(FileNotFoundError):
        check_room(nothing, made[2], *sized(14), BARE, need)


def test_only_the_rows_that_are_read_count_and_a_reference_as_long_as_it_is(made: Made) -> None:
    tokenizer = load_tokenizer(made[2].path / "model")
    rows = read_split(made[1], "validation", ("source", "target"), 3)
    pairs = zip(
        TokenRows.encode(tokenizer, rows["source"], 999).lengths,
        TokenRows.targets(tokenizer, rows["target"], 999).lengths,
        strict=True,
    )
    just = max(int(source + target) for source, target in pairs) - 1
    need = Need(
        stage="pre_distill",
        role="student",
        prompted=False,
        split="validation",
        rows=3,
        max_source_tokens=500,
        tokens=500,
        references=True,
    )
    check_room(*made[1:], *sized(just), BARE, need)
    with pytest.raises(ValueError, match="pre_distill: the student has"):
        check_room(*made[1:], *sized(just - 1), BARE, need)


def test_every_stage_of_a_run_is_asked() -> None:
    score = ScoreSettings(beam=BeamSettings(max_new_tokens=11), max_rows=7)
    method = replace(METHOD, sampling=SamplingSettings(max_new_tokens=12))
    found = list(needs(score, TRAINING, method, EVALUATION, ExposureSettings(max_length=13)))
    assert {(each.stage, each.role, each.split, each.tokens, each.judged) for each in found} == {
        ("score", "teacher", "train", 11, False),
        ("pre_distill", "student", "train", 8, False),
        ("pre_distill", "student", "validation", 8, False),
        ("pre_distill", "teacher", "validation", 8, False),
        *(("method", "student", split, 12, False) for split in ("train", "validation")),
        *(("method", "teacher", split, 12, True) for split in ("train", "validation")),
        ("evaluation", "teacher", "test", 6, True),
        ("evaluation", "student", "test", 6, False),
        ("exposure", "teacher", "test", 13, True),
        ("exposure", "student", "test", 13, False),
    }
    seqkd = SeqKDSettings(sampling=SamplingSettings(max_new_tokens=64))
    learnt = [each for each in needs(score, TRAINING, seqkd, EVALUATION, None) if each.stage == "method"]
    assert [(each.role, each.split, each.rows, each.tokens) for each in learnt] == [
        ("student", "train", 7, 11),
        ("student", "validation", 256, 64),
    ]


def test_a_run_is_refused_before_its_teacher_writes(made: Made, tmp_path: Path) -> None:
    started: list[str] = []

    class Watch(NullReporter):
        def stage_started(self, stage: str, key: str, why: str) -> None:
            started.append(stage)

    shape = replace(SHAPE, max_position_embeddings=longest(made, "train", PROMPT) + 6 - 1)
    arguments: dict[str, Any] = {
        "dataset": write_pairs(tmp_path / "pairs.csv"),
        "score": SCORE,
        "pre_distill": TRAINING,
    }
    with (
        pytest.raises(ValueError, match=r"method: the teacher has .* positions, and judges up to .* at once"),
        open_run(Store(tmp_path / "store"), name="tiny", runtime=RUNTIME, reporter=Watch()),
    ):
        pipeline(
            teacher=TeacherSettings(shape=shape, fit=TRAINING, vocab_size=60, prompt=PROMPT),
            student=StudentSettings(shape=SHAPE),
            method=METHOD,
            evaluation=replace(EVALUATION, decoding=replace(EVALUATION.decoding, max_new_tokens=1)),
            **arguments,
        )
    assert started == ["prepare", "teacher"]


def test_pairs_longer_than_the_positions_are_refused_before_the_first_update() -> None:
    model = build_model(replace(SHAPE, max_position_embeddings=6), 20, 0)
    settings = SupervisedSettings(batch=BatchSettings(micro_batch_rows=1))
    fits, long = ([[5, 6, 1]], [[7, 8, 9, 1]]), ([[5, 6, 1]], [[7, 8, 9, 9, 1]])
    whole, wide = (Pairs(*(TokenRows.of([*rows] * 9) for rows in each)) for each in (fits, long))
    next(train_supervised(TrainState.start(model, settings.optimizer), whole, whole, settings, 0))
    mixed = Pairs(TokenRows.of(fits[0] * 9 + long[0]), TokenRows.of(fits[1] * 9 + long[1]))
    for train, validation in ((mixed, whole), (whole, wide)):
        state = TrainState.start(model, settings.optimizer)
        with pytest.raises(ValueError, match="7 tokens together are longer than the model's 6 positions"):
            next(train_supervised(state, train, validation, settings, 0))
        assert state.step == 0


@pytest.mark.parametrize(
    ("max_source_tokens", "tokens", "judged", "just"),
    [(9, 3, True, None), (9, 40, True, 41), (9, 40, False, 40)],  # as much as is read, or as is written and judged
)
def test_an_encoder_decoder_has_positions_for_source_and_target_apart(
    made: Made, tmp_path: Path, max_source_tokens: int, tokens: int, judged: bool, just: int | None
) -> None:
    directory = write_bart(tmp_path / "bart")
    config = json.loads((directory / "config.json").read_text())
    need = Need(
        stage="method",
        role="teacher",
        prompted=True,
        split="train",
        rows=None,
        max_source_tokens=max_source_tokens,
        tokens=tokens,
        judged=judged,
    )
    tokenizer = load_tokenizer(made[2].path / "model")
    sources = read_split(made[1], "train", ("source",))["source"]
    read = int(wrapped_rows(tokenizer, PROMPT, sources, max_source_tokens).lengths.max())
    most = read if just is None else just
    for positions, refused in ((most, False), (most - 1, True)):
        (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
        named = TeacherSettings(name=str(directory)), StudentSettings(shape=T5Shape())
        with pytest.raises(ValueError, match="method: the teacher has") if refused else nullcontext():
            check_room(*made[1:], *named, Prompts(PROMPT), need)
