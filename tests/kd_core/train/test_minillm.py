"""MiniLLM's gradient against that of the exact divergence between outputs, where every output can be written out."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_core.models.t5 import encode
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.mixed_sampling import sample_mixed
from kd_core.rollout.responses import mask_through_eos, truncated_rows
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train import minillm as train_minillm
from kd_core.train.batches import BatchSettings, Sources
from kd_core.train.minillm import Experience, MiniLLMSettings, Pair, clipped_weight, future_return
from kd_core.train.state import OptimizerSettings, TrainState

Make = Callable[..., Any]
EOS, LIMIT = 1, 3
SOURCE, PROMPTED = [2, 3, 3], [3, 2]


def every_output() -> torch.Tensor:
    """Four tokens, at most three positions: 1 + 3 + 9 outputs that end, 27 that are cut off."""
    words = (0, 2, 3)
    ended = [(*some, EOS) for n in range(LIMIT) for some in itertools.product(words, repeat=n)]
    rows = ended + list(itertools.product(words, repeat=LIMIT))
    return torch.tensor([[*row, *[0] * (LIMIT - len(row))] for row in rows])


def token_log_probs(model: Any, source: list[int], tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, T) from the stock model's full logits, 0 where masked."""
    inputs = torch.cat([torch.zeros(len(tokens), 1, dtype=torch.long), tokens[:, :-1]], 1)
    ids = torch.tensor([source]).expand(len(tokens), -1)
    log_q = model(input_ids=ids, decoder_input_ids=inputs, use_cache=False).logits.log_softmax(2)
    return log_q.gather(2, tokens[:, :, None]).squeeze(2) * mask  # type: ignore[no-any-return]


@pytest.mark.usefixtures("exact_layer_norm")
@pytest.mark.parametrize("single_step", [True, False])
def test_the_gradient_is_that_of_the_divergence_between_outputs(make_t5: Make, single_step: bool) -> None:
    """sum_y q(y) * (surrogate's gradient at y) = grad KL(q || p), with and without the single-step decomposition."""
    student, teacher = make_t5(vocab_size=4, seed=1, sharpness=0.5), make_t5(vocab_size=4, seed=2)
    tokens = every_output()
    mask = mask_through_eos(tokens, EOS)
    log_q = token_log_probs(student, SOURCE, tokens, mask).sum(1)
    log_p = token_log_probs(teacher, PROMPTED, tokens, mask).sum(1).detach()
    assert float(log_q.detach().exp().sum()) == pytest.approx(1.0, abs=1e-12), "these outputs are not all there are"
    exact = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), list(student.parameters()))

    settings = MiniLLMSettings(single_step=single_step, teacher_mix=0, length_norm=False, ratio_clip=0)
    sources = Sources(TokenRows.of([SOURCE]), TokenRows.of([PROMPTED]))
    pair = Pair(student, teacher, sources, settings, None)
    found = [torch.zeros_like(p) for p in student.parameters()]
    step_log_q = token_log_probs(student, SOURCE, tokens, mask).detach()
    for b in range(len(tokens)):
        row = slice(b, b + 1)
        cut = truncated_rows(tokens[row], mask[row], EOS)
        part = Experience(tokens[row], mask[row], cut, step_log_q[row], source_B=torch.tensor([0]))
        loss, shown = pair.loss(part, 1)
        assert shown["max_ratio"] == pytest.approx(1.0, abs=1e-9)
        for total, grad in zip(found, torch.autograd.grad(loss, list(student.parameters())), strict=True):
            total += log_q[b].exp().detach() * grad
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)
    assert max(float(grad.abs().max()) for grad in exact) > 1e-3


def test_future_returns_by_hand() -> None:
    """r = 1, 2, 4 and then padding: R_t = 7, 6, 4; R_{t+1} = 6, 4, 0; over 3, 2, 1 and 2, 1, 0 summands."""
    reward, mask = torch.tensor([[1.0, 2.0, 4.0, 9.0]]), torch.tensor([[True, True, True, False]])

    def of(from_next: bool, length_norm: bool) -> list[float]:
        return future_return(reward * mask, mask, from_next=from_next, length_norm=length_norm)[0].tolist()

    assert of(False, False) == [7, 6, 4, 0]
    assert of(True, False) == [6, 4, 0, 0]
    assert of(False, True) == pytest.approx([7 / 3, 3, 4, 0])
    assert of(True, True) == [3, 4, 0, 0]


def test_the_clip_is_the_gradient_of_ppos_objective() -> None:
    ratio = torch.tensor([0.5, 0.9, 1.1, 1.5], dtype=torch.float64).repeat(2)
    future = torch.tensor([2.0] * 4 + [-3.0] * 4, dtype=torch.float64)
    log_q = ratio.log().requires_grad_()
    objective = torch.minimum(log_q.exp() * future, log_q.exp().clamp(0.8, 1.2) * future)
    (slope,) = torch.autograd.grad(objective.sum(), log_q)
    torch.testing.assert_close(clipped_weight(ratio, future, 0.2) * future, slope, atol=1e-12, rtol=0)
    assert (slope == 0).sum() == 2
    assert torch.equal(clipped_weight(ratio, future, 0), ratio)


@pytest.mark.usefixtures("exact_layer_norm")
def test_mixed_samples_are_drawn_from_the_mixture_and_say_how_probable_they_were(make_t5: Make) -> None:
    student, teacher = make_t5(vocab_size=4, seed=1), make_t5(vocab_size=4, seed=2)
    rows = 4000
    memories = [
        encode(model, torch.tensor([source]).expand(rows, -1), torch.ones(rows, len(source), dtype=torch.bool))
        for model, source in ((student, SOURCE), (teacher, PROMPTED))
    ]
    generator, chosen = torch.Generator().manual_seed(0), SamplingSettings(max_new_tokens=LIMIT)
    out = sample_mixed(student, memories[0], teacher, memories[1], 0.3, chosen, generator)
    with torch.no_grad():
        log_q, log_p = (
            token_log_probs(model, source, out.tokens_BT, out.mask_BT)
            for model, source in ((student, SOURCE), (teacher, PROMPTED))
        )
        expected = (0.3 * log_p.exp() + 0.7 * log_q.exp()).log() * out.mask_BT
    torch.testing.assert_close(out.log_prob_BT * out.mask_BT, expected, atol=1e-9, rtol=1e-9)
    # first tokens: each share within 4 standard errors, at most 0.032, but for 1 seed in 4,000
    empty = torch.tensor([[0], [1], [2], [3]])
    ones = torch.ones_like(empty).bool()
    with torch.no_grad():
        q, p = (token_log_probs(m, s, empty, ones).exp() for m, s in ((student, SOURCE), (teacher, PROMPTED)))
    share = torch.bincount(out.tokens_BT[:, 0], minlength=4) / rows
    assert (share - (0.3 * p + 0.7 * q)[:, 0]).abs().max() < 0.032
    assert (share - q[:, 0]).abs().max() > 0.05  # plain sampling would not pass


def ragged(seed: int) -> TokenRows:
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (20,), generator=rng).tolist()
    return TokenRows.of([[*torch.randint(2, 11, (n,), generator=rng).tolist(), 1] for n in lengths])


SOURCES = Sources(student=ragged(1), teacher=ragged(3))


def settings_of(**more: Any) -> MiniLLMSettings:
    common: dict[str, Any] = {
        "steps": 7,
        "validate_every": 3,
        "validation_rows": 6,
        "sampling": SamplingSettings(max_new_tokens=6),
        "batch": BatchSettings(micro_batch_rows=5, micro_batches=2),
        "optimizer": OptimizerSettings(learning_rate=1e-2),
    }
    return MiniLLMSettings(**(common | more))


@pytest.mark.parametrize("stop", [1, 5])
def test_resumed_training_is_byte_identical(make_t5: Make, tmp_path: Path, stop: int) -> None:
    settings, teacher = settings_of(updates_per_rollout=3), make_t5(seed=5)

    def loop(state: TrainState) -> Any:
        return train_minillm.train_minillm(state, teacher, SOURCES, SOURCES, settings, 0)

    whole = TrainState.start(make_t5(seed=4), settings.optimizer)
    whole_log = list(loop(whole))
    assert [row.values["staleness"] for row in whole_log[1:]] == [0, 1, 2, 0, 1, 2, 0]
    first = TrainState.start(make_t5(seed=4), settings.optimizer)
    log = list(itertools.islice(loop(first), stop + 1))
    assert first.in_flight, "no rollouts in flight: the case was not tested"
    first.save(tmp_path, log)
    second = TrainState.start(make_t5(seed=4), settings.optimizer)
    log = second.load(tmp_path)
    log += loop(second)
    assert log == whole_log
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("teacher_mix", [0.0, 0.2])
def test_the_student_comes_nearer_to_its_teacher(make_t5: Make, teacher_mix: float) -> None:
    settings = settings_of(
        steps=30, teacher_mix=teacher_mix, batch=BatchSettings(micro_batch_rows=20), validate_every=1
    )
    state = TrainState.start(make_t5(seed=4, sharpness=0.3), settings.optimizer)
    teacher = make_t5(seed=5, sharpness=0.3)
    log = list(train_minillm.train_minillm(state, teacher, SOURCES, SOURCES, settings, 0))
    assert log[-1].values["validation_reverse_kl"] < 0.8 * log[0].values["validation_reverse_kl"]
    if teacher_mix == 0:
        assert all(row.values["max_ratio"] == pytest.approx(1.0, abs=1e-5) for row in log[1:])
        assert all(row.values["clipped"] == 0 for row in log[1:])


@pytest.mark.parametrize(
    ("name", "value"), [("teacher_mix", 1.0), ("ratio_clip", -0.1), ("updates_per_rollout", 0), ("steps", 0)]
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        MiniLLMSettings(**{name: value})  # type: ignore[arg-type]
