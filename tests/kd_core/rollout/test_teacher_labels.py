"""What is kept of the teacher's distribution: the right tokens, counted right, and how much that loses."""

import math

import pytest
import torch

from kd_core.losses import lm_head
from kd_core.losses.head import Head
from kd_core.losses.soft_targets import HiddenLabels, SampledLabels, TopKLabels
from kd_core.rollout.teacher_labels import LabelSettings, OutputLabels, label_error, make_labels

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
    torch.testing.assert_close(labels.probabilities(slice(0, M), torch.empty(0, V)).double(), P, atol=1e-3, rtol=2e-3)


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
    shares = labels.probabilities(slice(0, M * number), torch.empty(0, V)).view(number, M, V).double().mean(0)
    error = (P * (1 - P) / (10 * number)).sqrt()
    assert ((shares - P).abs() < 4.5 * error + 1e-7).all()


def test_hidden_states_lose_a_rounding_only() -> None:
    labels = make_labels(HIDDEN, Head(WEIGHT), LabelSettings(kind="hidden"), UNIFORM)
    assert isinstance(labels, HiddenLabels)
    assert labels.hidden_ME.dtype == torch.float16
    error = label_error(labels, HIDDEN, Head(WEIGHT))
    assert 0 < error.divergence < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_that_float16_cannot_hold_are_kept_as_they_are(dtype: torch.dtype) -> None:
    hidden = (HIDDEN * 1e6).to(dtype)
    labels = make_labels(hidden, Head(WEIGHT.to(dtype)), LabelSettings(kind="hidden"), UNIFORM)
    assert isinstance(labels, HiddenLabels)
    assert hidden.abs().max() > 65_504
    assert torch.equal(labels.hidden_ME[:], hidden)
    assert labels.hidden_ME[:].dtype == dtype


def test_a_teacher_whose_states_are_no_numbers_is_refused() -> None:
    hidden = HIDDEN.clone()
    hidden[3, 1] = torch.inf
    with pytest.raises(ValueError, match="final states are not finite numbers\nlook at its weights"):
        make_labels(hidden, Head(WEIGHT), LabelSettings(kind="hidden"), UNIFORM)


def test_a_bucket_says_nothing_wrong_and_an_even_tail_does() -> None:
    even, bucket = (
        label_error(make_labels(HIDDEN, Head(WEIGHT), LabelSettings(top_k=2, tail=tail), UNIFORM), HIDDEN, Head(WEIGHT))
        for tail in ("even", "bucket")  # type: ignore[arg-type]
    )
    assert even.divergence > 0.05
    assert abs(bucket.divergence) < 1e-5
    assert bucket.missed < 1e-3  # float16


def test_labels_of_outputs_are_those_of_their_first_tokens() -> None:
    labels = make_labels(HIDDEN, Head(WEIGHT), LabelSettings(top_k=3), UNIFORM)
    assert isinstance(labels, TopKLabels)
    outputs = OutputLabels(labels, torch.tensor([0, 4, 5]))  # of 4, 1 and 6 tokens
    found = outputs.of(torch.tensor([2, 0, 1]), torch.tensor([3, 4, 1]))
    assert isinstance(found, TopKLabels)
    assert torch.equal(found.ids_MK[:], labels.ids_MK[torch.tensor([5, 6, 7, 0, 1, 2, 3, 4])])


def test_the_error_is_the_divergence_from_the_dense_distribution() -> None:
    labels = make_labels(HIDDEN, Head(WEIGHT), LabelSettings(top_k=2), UNIFORM)
    kept = labels.probabilities(slice(0, M), torch.empty(0, V)).double()
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
        ({"tail": "none"}, "tail must be even or bucket, got 'none'"),
        ({"tail": "bucket", "kind": "hidden"}, "tail bucket is of labels of kind topk, got kind hidden\nset kind=topk"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LabelSettings(**wrong)  # type: ignore[arg-type]
