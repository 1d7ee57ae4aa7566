"""Excess error on a toy model: against the sum over all sequences there are, and the stock model's full logits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_core.metrics.bootstrap import Resamples
from kd_core.metrics.excess_error import ExcessError, Reader, excess_error, prefix_kl
from kd_core.models.t5 import encode
from kd_core.rollout.responses import mask_through_eos
from kd_core.rollout.sampling import SamplingSettings, sample

EOS, VOCABULARY, LONGEST = 1, 5, 3
PROMPTED, SOURCE = torch.tensor([[3, 4, 2, 4]]), torch.tensor([[4, 2]])
pytestmark = pytest.mark.usefixtures("exact_layer_norm")


def reader(model: Any, source: Tensor, times: int = 1) -> Reader:
    ids = source.expand(times, -1)
    return Reader(model, ids, torch.ones_like(ids, dtype=torch.bool))


@torch.no_grad()
def next_log_probs(model: Any, source: Tensor, prefix: list[int]) -> Tensor:
    """(V,) of the stock model after a prefix."""
    inputs = torch.tensor([[model.config.decoder_start_token_id, *prefix]])
    return model(input_ids=source, decoder_input_ids=inputs, use_cache=False).logits[0, -1].log_softmax(0)  # type: ignore[no-any-return]


def exact(teacher: Any, student: Any, *, own: bool, length: int, prefix: tuple[int, ...] = ()) -> float:
    """D_s(length) if `own`, else D_t(length): this step's KL, then every way to go on with its probability."""
    if len(prefix) == length or EOS in prefix:
        return 0.0
    log_p, log_q = next_log_probs(teacher, PROMPTED, [*prefix]), next_log_probs(student, SOURCE, [*prefix])
    kl = sum(float(p.exp() * (p - q)) for p, q in zip(log_p, log_q, strict=True))
    chance = (log_q if own else log_p).exp()
    return kl + sum(
        float(chance[v]) * exact(teacher, student, own=own, length=length, prefix=(*prefix, v))
        for v in range(VOCABULARY)
    )


def sequences(prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """All outputs: those that end within LONGEST tokens, and those cut off there."""
    if len(prefix) == LONGEST or EOS in prefix:
        return [prefix]
    return [sequence for v in range(VOCABULARY) for sequence in sequences((*prefix, v))]


@pytest.fixture
def models(make_t5: Callable[..., Any]) -> tuple[Any, Any]:
    return make_t5(VOCABULARY, seed=0, sharpness=0.6), make_t5(VOCABULARY, seed=1, sharpness=0.6)


def test_the_curve_is_that_of_the_enumeration(models: tuple[Any, Any]) -> None:
    """Every sequence, weighted with its probability, gives D exactly."""
    teacher, student = models
    every = sequences()
    assert len(every) == 1 + 4 + 16 + 64  # ended after 1, 2 tokens or 3, and cut off: 4^(t-1) + 4^3
    tokens = torch.tensor([[*sequence, *[0] * (LONGEST - len(sequence))] for sequence in every])
    mask = torch.tensor([[t < len(sequence) for t in range(LONGEST)] for sequence in every])
    kl = prefix_kl(reader(teacher, PROMPTED, len(every)), reader(student, SOURCE, len(every)), tokens, mask)
    assert (kl[~mask] == 0).all()
    accumulated = kl.cumsum(1).numpy()
    for own, model, source in ((True, student, SOURCE), (False, teacher, PROMPTED)):
        chance = [
            np.exp(sum(float(next_log_probs(model, source, [*each[:t]])[each[t]]) for t in range(len(each))))
            for each in every
        ]
        assert sum(chance) == pytest.approx(1)
        for length in range(1, LONGEST + 1):
            expected = exact(teacher, student, own=own, length=length)
            assert np.array(chance) @ accumulated[:, length - 1] == pytest.approx(expected, rel=1e-9)


def test_sampled_prefixes_estimate_it_and_the_band_covers_it(models: tuple[Any, Any]) -> None:
    """5,000 outputs of each model; cut into 50 experiments of 100, the band covers the truth in about 47 of them."""
    teacher, student = models
    curves = []
    for seed, model, source in ((0, student, SOURCE), (1, teacher, PROMPTED)):
        ids = source.expand(5000, -1)
        memory = encode(model, ids, torch.ones_like(ids, dtype=torch.bool))
        generator = torch.Generator().manual_seed(seed)
        drawn = sample(model, memory, SamplingSettings(max_new_tokens=LONGEST), generator)
        readers = reader(teacher, PROMPTED, 5000), reader(student, SOURCE, 5000)
        curves.append(prefix_kl(*readers, drawn.tokens_BT, drawn.mask_BT).cumsum(1).numpy())
    truth = [[exact(teacher, student, own=own, length=n) for n in range(1, LONGEST + 1)] for own in (True, False)]
    for curve_NL, expected in zip(curves, truth, strict=True):
        error_L = curve_NL.std(axis=0) / np.sqrt(5000)
        assert (np.abs(curve_NL.mean(axis=0) - expected) <= 4 * error_L + 1e-9).all()
    expected = 100 * (truth[0][-1] - truth[1][-1]) / truth[1][-1]
    covered = 0
    for part in np.split(np.arange(5000), 50):
        last = excess_error(curves[0][part], curves[1][part], Resamples(num_outputs=100, num_resamples=200))[-1].value
        assert last.low is not None
        assert last.high is not None
        covered += last.low <= expected <= last.high
    assert covered >= 43


def test_at_length_1_there_is_no_prefix_and_no_excess(models: tuple[Any, Any]) -> None:
    tokens = torch.tensor([[4], [2]])
    readers = reader(models[0], PROMPTED, 2), reader(models[1], SOURCE, 2)
    kl = prefix_kl(*readers, tokens, mask_through_eos(tokens, EOS)).numpy()
    assert excess_error(kl, kl[::-1], Resamples(num_outputs=2, num_resamples=9))[0].value.value == pytest.approx(0)


def test_the_curve_by_hand() -> None:
    # two inputs; D_s(2) = (3 + 5) / 2 = 4, D_t(2) = (2 + 3) / 2 = 2.5: 60 %. Drawn twice: 3/2 -> 50 %, 5/3 -> 66.7 %.
    student, teacher = np.array([[1.0, 3.0], [2.0, 5.0]]), np.array([[1.0, 2.0], [2.0, 3.0]])
    first, second = excess_error(student, teacher, Resamples(num_outputs=2, num_resamples=400))
    assert (first.length, first.value.value, first.d_student, first.d_teacher) == (1, 0, 1.5, 1.5)
    assert (second.length, second.d_student, second.d_teacher, second.value.n) == (2, 4, 2.5, 2)
    assert [second.value.value, second.value.low, second.value.high] == pytest.approx([60, 50, 200 / 3])


def test_equal_models_have_no_excess_error_and_the_reason_is_given() -> None:
    found: list[ExcessError] = excess_error(np.zeros((3, 2)), np.zeros((3, 2)), Resamples(num_outputs=3))
    assert [each.value.value for each in found] == [None, None]
    assert found[0].value.note == "teacher and student do not differ after the teacher's prefixes"


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"same inputs and lengths, got \(2, 3\), \(2, 4\)"):
        excess_error(np.ones((2, 3)), np.ones((2, 4)), Resamples(num_outputs=2))
