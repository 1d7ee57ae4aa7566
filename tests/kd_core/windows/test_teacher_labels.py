"""What is kept of the teacher's distribution: the right tokens, counted right, and how much that loses."""

import math

import pytest
import torch

from kd_core.losses import lm_head
from kd_core.losses.head import Head
from kd_core.losses.soft_targets import HiddenLabels, SampledLabels, TopKLabels
from kd_core.windows.teacher_labels import LabelSettings, label_error, make_labels

M, E, V = 11, 5, 13


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "CHUNK_NUMBERS", 4 * V)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN, WEIGHT = 2 * normal(M, E, seed=0), normal(V, E, seed=1)
P = (HIDDEN @ WEIGHT.T).softmax(1)
UNIFORM = torch.rand((M, 30), generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_top_k_are_the_most_probable_with_their_log_probabilities() -> None:
    labels = make_labels(HIDDEN, Head(WEIGHT), LabelSettings(top_k=4), UNIFORM)
    assert isinstance(labels, TopKLabels)
    best, ids = P.topk(4, dim=1)
    assert labels.ids_MK.tolist() == ids.tolist()
    torch.testing.assert_close(labels.log_prob_MK.double(), best.log(), atol=2e-3, rtol=1e-3)  # float16


def test_more_labels_than_there_are_tokens_means_all_of_them() -> None:
    labels = make_labels(HIDDEN, Head(WEIGHT), LabelSettings(top_k=40), UNIFORM)
    torch.testing.assert_close(labels.probabilities(slice(0, M), V).double(), P, atol=1e-3, rtol=2e-3)


def test_draws_are_counted_token_by_token() -> None:
    labels = make_labels(HIDDEN, Head(WEIGHT), LabelSettings(kind="sampled", draws=9), UNIFORM)
    assert isinstance(labels, SampledLabels)
    for row in range(M):
        drawn = [int((P[row].cumsum(0) <= u).sum()) for u in UNIFORM[row, :9]]
        kept = [(i, c) for i, c in zip(labels.ids_MK[row].tolist(), labels.count_MK[row].tolist(), strict=True) if c]
        assert kept == sorted((token, drawn.count(token)) for token in set(drawn))
    assert (labels.count_MK.sum(1) == 9).all()
    assert (labels.count_MK > 1).any(), "no token was drawn twice: counting was not tested"


def test_a_token_of_probability_0_is_never_drawn() -> None:
    # in float32, exp(-200) is 0 and 1 - 2^-40 is 1: that number, times the sum, is the sum
    hidden, weight = torch.ones((1, 1)), torch.tensor([[-200.0], [0.0], [-200.0], [0.1], [-200.0]])
    uniform = torch.tensor([[0.0, 1 - 2**-40, 0.5]], dtype=torch.float64)
    labels = make_labels(hidden, Head(weight), LabelSettings(kind="sampled", draws=3), uniform)
    assert isinstance(labels, SampledLabels)
    assert set(labels.ids_MK[labels.count_MK > 0].tolist()) <= {1, 3}


def test_sampled_labels_have_the_teachers_distribution_on_average() -> None:
    # 20,000 draws of each: every share lies within 4.5 standard errors of p but for 1 seed in 1,000 (143 comparisons)
    number = 2000
    uniform = torch.rand((M * number, 10), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = make_labels(HIDDEN.repeat(number, 1), Head(WEIGHT), LabelSettings(kind="sampled", draws=10), uniform)
    shares = labels.probabilities(slice(0, M * number), V).view(number, M, V).double().mean(0)
    error = (P * (1 - P) / (10 * number)).sqrt()
    assert ((shares - P).abs() < 4.5 * error + 1e-7).all()


def test_hidden_states_lose_a_rounding_only() -> None:
    labels = make_labels(HIDDEN, Head(WEIGHT), LabelSettings(kind="hidden"), UNIFORM)
    assert isinstance(labels, HiddenLabels)
    assert labels.hidden_ME.dtype == torch.float16
    error = label_error(labels, HIDDEN, Head(WEIGHT))
    assert 0 < error.divergence < 1e-5


def test_hidden_states_that_float16_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^final states up to .* do not fit in float16\nset labels\.kind=topk"):
        make_labels(HIDDEN * 1e6, Head(WEIGHT), LabelSettings(kind="hidden"), UNIFORM)


def test_the_error_is_the_divergence_from_the_dense_distribution() -> None:
    labels = make_labels(HIDDEN, Head(WEIGHT), LabelSettings(top_k=2), UNIFORM)
    kept = labels.probabilities(slice(0, M), V).double()
    error = label_error(labels, HIDDEN, Head(WEIGHT))
    assert error.divergence == pytest.approx(float((kept * (kept / P).log()).sum(1).mean()), rel=1e-6)
    assert error.missed == pytest.approx(float((kept - P).abs().sum(1).mean() / 2), rel=1e-6)


def test_the_error_of_one_draw_is_the_surprise_of_what_was_drawn() -> None:
    # labels that put all mass on one token w: KL(labels || p) = -log p(w)
    labels = make_labels(HIDDEN, Head(WEIGHT), LabelSettings(kind="sampled", draws=1), UNIFORM)
    assert isinstance(labels, SampledLabels)
    surprise = [-math.log(P[row, int(labels.ids_MK[row, 0])]) for row in range(M)]
    assert label_error(labels, HIDDEN, Head(WEIGHT)).divergence == pytest.approx(sum(surprise) / M, rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "dense"}, "kind must be hidden, topk or sampled, got 'dense'"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"draws": 256}, "draws must be at most 255"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LabelSettings(**wrong)  # type: ignore[arg-type]
