"""The divergence loop: its loss and gradient against stock models' full logits; who writes; how batches are split."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_core.losses import divergences
from kd_core.losses.soft_targets import HiddenLabels
from kd_core.models.policy import head_of
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import SamplingSettings
from kd_core.rollout.teacher_labels import OutputLabels
from kd_core.train import divergence as train_divergence
from kd_core.train.batches import BatchSettings, Sources
from kd_core.train.divergence import (
    DivergenceSettings,
    ForwardKLSettings,
    GKDSettings,
    JSSettings,
    Pair,
    ReverseKLSettings,
    Transfer,
    reads_outputs,
    step_terms,
    student_writes,
)
from kd_core.train.ranks import ALONE
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState
from kd_core.train.supervised import Pairs, pair_states

Make = Callable[..., Any]
COMMON: dict[str, Any] = {
    "steps": 5,
    "validate_every": 2,
    "validation_rows": 6,
    "sampling": SamplingSettings(max_new_tokens=6),
    "batch": BatchSettings(micro_batch_rows=5, micro_batches=2),
    "optimizer": OptimizerSettings(learning_rate=1e-2),
}
METHODS: dict[str, DivergenceSettings] = {
    "forward_kl": ForwardKLSettings(**COMMON),
    "reverse_kl": ReverseKLSettings(**COMMON),
    "js": JSSettings(**COMMON, beta=0.85),
    "gkd": GKDSettings(**COMMON, beta=0.1),
}


def ragged(rows: int, seed: int, longest: int = 6) -> TokenRows:
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (rows,), generator=rng).tolist()
    return TokenRows.of([[*torch.randint(2, 11, (n,), generator=rng).tolist(), 1] for n in lengths])


SOURCES = Sources(student=ragged(20, 1), teacher=ragged(20, 3))  # the teacher reads something else: its prompt
TRANSFER = Transfer(SOURCES, ragged(20, 2, longest=9))  # some of them longer than the limit


def train(student: Any, teacher: Any, settings: DivergenceSettings) -> tuple[TrainState, list[StepMetrics]]:
    state = TrainState.start(student, settings.optimizer)
    return state, list(train_divergence.train_divergence(state, teacher, TRANSFER, SOURCES, settings, 0))


def stock_logits(model: Any, sources: TokenRows, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T, V) of the stock model: nothing of the code under test."""
    source, mask = sources.batch(rows, 0)
    inputs = torch.cat([torch.zeros(len(tokens), 1, dtype=torch.long), tokens[:, :-1]], 1)
    out = model(input_ids=source, attention_mask=mask.long(), decoder_input_ids=inputs, use_cache=False)
    return out.logits  # type: ignore[no-any-return]


@pytest.mark.usefixtures("exact_layer_norm")
@pytest.mark.parametrize("kind", METHODS)
def test_loss_and_gradient_are_those_of_full_logits(make_t5: Make, kind: str) -> None:
    """Heads are padded to different sizes here, and 10 tokens can be named."""
    student, teacher, settings = make_t5(seed=4), make_t5(vocab_size=13, seed=5), METHODS[kind]
    rows, terms = torch.arange(7), step_terms(settings, 0, 0)
    pair = Pair(student, teacher, TRANSFER, settings, 10)
    part = pair.write(ALONE.mine(rows), terms, seed=3)
    count = sum(int(each.mask_BT.sum()) for each in part.outputs)
    loss, _ = pair.loss(part, terms, count)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()

    total = torch.zeros((), dtype=torch.float64)
    for term, out in zip(terms, part.outputs, strict=True):
        p = stock_logits(teacher, SOURCES.teacher, rows, out.tokens_BT).detach()[:, :, :10]
        q = stock_logits(student, SOURCES.student, rows, out.tokens_BT)[:, :, :10]
        chosen: Any = getattr(divergences, term.divergence.kind)
        value = chosen(p, q, term.divergence.beta) if "js" in term.divergence.kind else chosen(p, q)
        for b in range(7):
            for t in range(out.tokens_BT.shape[1]):
                if out.mask_BT[b, t]:
                    total = total + value[b, t] / count
    total.backward()
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-9)
    for name, p in student.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-9, rtol=1e-7, msg=name)


@pytest.mark.parametrize("kind", METHODS)
def test_a_length_that_was_left_to_a_run_is_refused(make_t5: Make, kind: str) -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        train(make_t5(), make_t5(), replace(METHODS[kind], sampling=SamplingSettings()))


def hidden_labels(teacher: Any) -> OutputLabels:
    """What the teacher's final states are at every token of the outputs, whole."""
    outputs = TRANSFER.outputs
    assert outputs is not None
    with torch.no_grad():
        states, _ = pair_states(teacher, Pairs(SOURCES.teacher, outputs), torch.arange(len(outputs)))
    return OutputLabels(HiddenLabels(states, head_of(teacher)), outputs.offset_R1[:-1])


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("kind", ["forward_kl", "js"])
def test_states_that_were_kept_stand_for_the_teacher_that_had_them(
    make_t5: Make, kind: str, micro_batches: int
) -> None:
    teacher = make_t5(seed=5)
    settings = replace(METHODS[kind], batch=BatchSettings(micro_batch_rows=5, micro_batches=micro_batches))
    resident, _ = train(make_t5(seed=4), teacher, settings)
    state = TrainState.start(make_t5(seed=4), settings.optimizer)
    kept = replace(TRANSFER, labels=hidden_labels(teacher))
    asked = None if kind == "forward_kl" else teacher
    log = list(train_divergence.train_divergence(state, asked, kept, SOURCES, settings, 0))
    for ours, theirs in zip(state.model.parameters(), resident.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    assert ("validation_reward" in log[0].values) == (kind == "js")


def test_which_methods_need_no_more_than_the_teachers_outputs() -> None:
    assert [student_writes(each) for each in METHODS.values()] == [False, True, True, True]
    assert not student_writes(GKDSettings(student_share=0))


def test_who_writes_what_is_the_methods_definition() -> None:
    def of(settings: DivergenceSettings) -> list[tuple[str, str, float]]:
        return [(term.writer, term.divergence.kind, term.divergence.beta) for term in step_terms(settings, 0, 0)]

    assert of(ForwardKLSettings()) == [("teacher", "forward_kl", 0.5)]
    assert of(ReverseKLSettings()) == [("student", "reverse_kl", 0.5)]
    assert of(JSSettings(beta=0.85)) == [("teacher", "js_teacher_term", 0.85), ("student", "js_student_term", 0.85)]
    assert of(GKDSettings(beta=0.1, student_share=0)) == [("teacher", "js", 0.1)]
    assert of(GKDSettings(beta=0, student_share=1)) == [("student", "forward_kl", 0)]
    assert of(GKDSettings(beta=1, student_share=1)) == [("student", "reverse_kl", 1)]


def test_the_student_writes_in_lambda_of_gkds_updates() -> None:
    # 2,000 draws of 0.3: the share lies within 4 standard errors (0.041) but for 1 seed in 15,000
    settings = GKDSettings(student_share=0.3)
    writers = [step_terms(settings, 7, step)[0].writer for step in range(2000)]
    assert abs(writers.count("student") / 2000 - 0.3) < 0.041
    assert writers == [step_terms(settings, 7, step)[0].writer for step in range(2000)]
    assert writers != [step_terms(settings, 8, step)[0].writer for step in range(2000)]


def test_the_teachers_outputs_are_read_where_they_are_needed() -> None:
    assert [reads_outputs(each) for each in METHODS.values()] == [True, False, True, True]
    assert not reads_outputs(GKDSettings(student_share=1))


def test_micro_batches_equal_one_batch(make_t5: Make) -> None:
    """One update over 4 x 5 rows is the update over 20: averaged over all tokens, not per micro-batch."""
    results = []
    for rows, micro in ((20, 1), (5, 4)):
        batch = BatchSettings(micro_batch_rows=rows, micro_batches=micro)
        settings = replace(METHODS["forward_kl"], steps=1, batch=batch)
        state, (_, row) = train(make_t5(seed=4), make_t5(seed=5), settings)
        results.append((row.values["loss"], row.values["tokens"], [p.detach() for p in state.model.parameters()]))
    (loss, tokens, one), (split_loss, split_tokens, split) = results
    assert tokens == split_tokens == float(TRANSFER.outputs.lengths.clamp(max=6).sum())  # type: ignore[union-attr]
    assert loss == pytest.approx(split_loss, rel=1e-6)
    for a, b in zip(one, split, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", METHODS)
def test_resumed_training_is_byte_identical(make_t5: Make, tmp_path: Path, kind: str) -> None:
    settings, teacher = METHODS[kind], make_t5(seed=5)
    whole, whole_log = train(make_t5(seed=4), teacher, settings)
    first = TrainState.start(make_t5(seed=4), settings.optimizer)
    log = []
    for row in train_divergence.train_divergence(first, teacher, TRANSFER, SOURCES, settings, 0):
        log.append(row)
        if row.step == 3:
            break
    first.save(tmp_path, log)
    second = TrainState.start(make_t5(seed=4), settings.optimizer)
    log = second.load(tmp_path)
    log += train_divergence.train_divergence(second, teacher, TRANSFER, SOURCES, settings, 0)
    assert log == whole_log
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("kind", METHODS)
def test_the_student_comes_nearer_to_its_teacher(make_t5: Make, kind: str, micro_batches: int) -> None:
    batch = BatchSettings(micro_batch_rows=10, micro_batches=micro_batches)
    settings = replace(METHODS[kind], steps=30, batch=batch, validate_every=1)
    _, log = train(make_t5(seed=4, sharpness=0.3), make_t5(seed=5, sharpness=0.3), settings)
    for name in ("validation_forward_kl", "validation_reverse_kl"):
        assert log[-1].values[name] < 0.8 * log[0].values[name]


def test_each_writers_tokens_and_divergence_are_logged(make_t5: Make) -> None:
    _, log = train(make_t5(seed=4), make_t5(seed=5), METHODS["js"])
    for row in log[1:]:
        of = {who: (row.values[f"{who}_tokens"], row.values[f"{who}_term"]) for who in ("teacher", "student")}
        summed = sum(tokens * term for tokens, term in of.values())
        assert row.values["tokens"] == of["teacher"][0] + of["student"][0]
        assert row.values["loss"] == pytest.approx(summed / row.values["tokens"], rel=1e-5)
        assert 1 <= row.values["length"] <= 6


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: JSSettings(beta=1.0), r"beta must be in \(0, 1\), got 1.0"),
        (lambda: GKDSettings(beta=1.1), r"beta must be in \[0, 1\], got 1.1"),
        (lambda: GKDSettings(student_share=-0.1), r"student_share must be in \[0, 1\], got -0.1"),
        (lambda: ForwardKLSettings(steps=0), "steps must be at least 1, got 0"),
        (lambda: ReverseKLSettings(validate_every=-1), "validate_every must be 0 .* or more, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
