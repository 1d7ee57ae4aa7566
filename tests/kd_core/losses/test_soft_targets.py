"""Eq. 5 in chunks against autograd on dense distributions; what each kind of label gets right, and what not."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kd_core.losses import lm_head
from kd_core.losses.head import Head
from kd_core.losses.soft_targets import (
    BucketLabels,
    HiddenLabels,
    SampledLabels,
    TeacherLabels,
    TopKLabels,
    distillation_loss,
)

M, D, E, V = 13, 6, 4, 9


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "CHUNK_NUMBERS", 4 * V)  # 4 rows a chunk: 13 rows leave a last chunk of 1


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


HIDDEN, WEIGHT = normal(M, D, seed=0), normal(V, D, seed=1)
TARGET = torch.randint(0, V, (M,), generator=rng(2))
TEACHER = HiddenLabels(2 * normal(M, E, seed=3), Head(normal(V, E, seed=4)))
P = (TEACHER.hidden_ME @ TEACHER.head.weight_VD.T).softmax(1)


def slow(hidden: torch.Tensor, weight: torch.Tensor, alpha: float) -> torch.Tensor:
    """Eq. 5 word for word, prediction by prediction."""
    total = torch.zeros((), dtype=torch.float64)
    for m in range(M):
        log_q = F.log_softmax(weight @ hidden[m], 0)
        nll = -log_q[TARGET[m]]
        kd = -sum(P[m, w] * log_q[w] for w in range(V))
        total = total + alpha * nll + (1 - alpha) * kd
    return total / M


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_loss_and_gradients_equal_autograd_on_dense_distributions(alpha: float) -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    loss, terms = distillation_loss(hidden, Head(weight), TARGET, TEACHER, alpha)
    ours = torch.autograd.grad(3.0 * loss, (hidden, weight))
    plain = slow(hidden, weight, alpha)
    torch.testing.assert_close(loss, plain, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours, torch.autograd.grad(3.0 * plain, (hidden, weight)), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(terms.nll_M.mean(), slow(hidden, weight, 1.0).detach(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(terms.kd_M.mean(), slow(hidden, weight, 0.0).detach(), atol=1e-12, rtol=1e-12)


def test_a_frozen_head_costs_no_gradient_and_gives_the_same() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    (frozen,) = torch.autograd.grad(distillation_loss(hidden, Head(WEIGHT), TARGET, TEACHER, 0.5)[0], hidden)
    (plain,) = torch.autograd.grad(slow(hidden, WEIGHT, 0.5), hidden)
    torch.testing.assert_close(frozen, plain, atol=1e-12, rtol=1e-12)


def test_dad_needs_no_teacher() -> None:
    loss, terms = distillation_loss(HIDDEN, Head(WEIGHT), TARGET, None, 1.0)
    torch.testing.assert_close(loss, F.cross_entropy(HIDDEN @ WEIGHT.T, TARGET), atol=1e-12, rtol=1e-12)
    assert (terms.kd_M == 0).all()


def top_k(k: int) -> TopKLabels:
    best, ids = P.log().topk(k, dim=1)
    return TopKLabels(ids.int(), best)


def test_top_k_of_the_whole_vocabulary_is_exact() -> None:
    torch.testing.assert_close(top_k(V).probabilities(slice(0, M), torch.empty(0, V)), P, atol=1e-12, rtol=1e-12)


def test_top_k_keeps_its_k_as_they_are_and_spreads_the_rest_evenly() -> None:
    found = top_k(3).probabilities(slice(2, 7), torch.empty(0, V))
    torch.testing.assert_close(found.sum(1), torch.ones(5, dtype=torch.float64))
    for row, ids in zip(range(2, 7), top_k(3).ids_MK[2:7].long(), strict=True):
        kept = torch.zeros(V, dtype=torch.bool).index_fill(0, ids, True)
        torch.testing.assert_close(found[row - 2][kept], P[row][kept])
        torch.testing.assert_close(found[row - 2][~kept], ((1 - P[row][kept].sum()) / (V - 3)).expand(V - 3))


def outcomes(log_p_V: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(K + 1,) log-probabilities: of the kept tokens one by one, and of all others together."""
    others = torch.ones(V, dtype=torch.bool).index_fill(0, ids, False)
    return torch.cat([log_p_V[ids], log_p_V[others].exp().sum().log()[None]])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("k", [1, 3, V - 1])
def test_a_bucket_is_one_more_outcome_in_value_and_gradient(k: int, alpha: float) -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    even = top_k(k)
    labels = BucketLabels(even.ids_MK, even.log_prob_MK)
    loss, terms = distillation_loss(hidden, Head(weight), TARGET, labels, alpha)
    ours = torch.autograd.grad(3.0 * loss, (hidden, weight))
    nll, kd = [], []
    for m in range(M):
        log_q, ids = F.log_softmax(weight @ hidden[m], 0), even.ids_MK[m].long()
        nll.append(-log_q[TARGET[m]])
        kd.append(-(outcomes(P[m].log(), ids).exp() * outcomes(log_q, ids)).sum())
    plain = alpha * torch.stack(nll).mean() + (1 - alpha) * torch.stack(kd).mean()
    torch.testing.assert_close(terms.kd_M, torch.stack(kd).detach(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(loss, plain, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours, torch.autograd.grad(3.0 * plain, (hidden, weight)), atol=1e-12, rtol=1e-12)


def test_a_bucket_with_nothing_in_it_is_exact() -> None:
    whole = BucketLabels(*vars(top_k(V)).values())
    exact, ours = (distillation_loss(HIDDEN, Head(WEIGHT), TARGET, each, 0.3)[0] for each in (TEACHER, whole))
    torch.testing.assert_close(ours, exact, atol=1e-12, rtol=1e-12)


def test_a_bucket_that_the_student_leaves_empty_stays_finite() -> None:
    hidden = torch.tensor([[1.0]]).requires_grad_()
    head = Head(torch.tensor([[300.0], [-300.0], [-300.0]]))  # q of the others: e^-600, no float32
    labels = BucketLabels(torch.tensor([[0]]), torch.tensor([[0.5]]).log())
    loss, terms = distillation_loss(hidden, head, torch.tensor([0]), labels, 0.0)
    loss.backward()
    assert float(terms.kd_M) == pytest.approx(300 - 0.5 * math.log(2))  # 0.5 * (600 - log 2) nats
    assert hidden.grad is not None
    assert float(hidden.grad) == pytest.approx(300)  # (q - p) W: 0.5 * 300 + 2 * -0.25 * -300


@pytest.mark.parametrize("kind", [TopKLabels, BucketLabels])
def test_an_empty_place_is_as_if_it_were_not_there(kind: Any) -> None:
    three = top_k(3)
    ids = torch.cat([three.ids_MK, three.ids_MK[:, :1], three.ids_MK[:, 1:2]], dim=1)
    empty = torch.full((M, 2), float("-inf"), dtype=torch.float64)
    padded, plain = kind(ids, torch.cat([three.log_prob_MK, empty], dim=1)), kind(*vars(three).values())
    ours, theirs = (distillation_loss(HIDDEN, Head(WEIGHT), TARGET, each, 0.3) for each in (padded, plain))
    torch.testing.assert_close(ours[0], theirs[0], atol=0, rtol=1e-15)
    log_q = F.log_softmax(HIDDEN @ WEIGHT.T, 1)
    assert torch.equal(*(each.probabilities(slice(0, M), log_q) for each in (padded, plain)))


def test_sampled_labels_are_unbiased() -> None:
    # 4,000 label sets of 8 draws: the mean loss lies within 4 standard errors of the dense one but for 1 seed in 15,000
    exact = float(distillation_loss(HIDDEN, Head(WEIGHT), TARGET, TEACHER, 0.3)[0])
    ids = torch.arange(V, dtype=torch.int32).expand(M, V)
    draws = torch.multinomial(P.repeat(4000, 1), 8, replacement=True, generator=rng(5)).view(4000, M, 8)
    counts = F.one_hot(draws, V).sum(2)
    losses = torch.stack(
        [distillation_loss(HIDDEN, Head(WEIGHT), TARGET, SampledLabels(ids, c), 0.3)[0] for c in counts]
    )
    assert losses.std() > 0
    assert abs(losses.mean() - exact) < 4 * losses.std() / 4000**0.5


def test_top_k_is_biased_and_by_as_much_as_its_divergence_says() -> None:
    exact, cut = (distillation_loss(HIDDEN, Head(WEIGHT), TARGET, labels, 0.0)[0] for labels in (TEACHER, top_k(2)))
    assert abs(cut - exact) > 1e-3
    divergence = (P * (P.log() - top_k(2).probabilities(slice(0, M), torch.empty(0, V)).log())).sum(1)
    assert (divergence > 0).all()


def test_padding_of_sampled_labels_counts_nothing() -> None:
    plain = SampledLabels(torch.tensor([[3, 5]]), torch.tensor([[3, 1]]))
    padded = SampledLabels(torch.tensor([[3, 5, 0]]), torch.tensor([[3, 1, 0]]))
    expected = torch.zeros(1, V).index_put((torch.tensor([0, 0]), torch.tensor([3, 5])), torch.tensor([0.75, 0.25]))
    for labels in (plain, padded):
        assert torch.equal(labels.probabilities(slice(0, 1), torch.empty(0, V)), expected)


@pytest.mark.parametrize(
    ("labels", "alpha", "says"),
    [
        (TEACHER, 1.5, r"alpha must be in \[0, 1\], got 1.5"),
        (TEACHER, -0.1, r"alpha must be in \[0, 1\], got -0.1"),
        (None, 0.5, "alpha 0.5 needs the teacher's labels"),
    ],
)
def test_bad_alpha_is_refused(labels: TeacherLabels | None, alpha: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        distillation_loss(HIDDEN, Head(WEIGHT), TARGET, labels, alpha)
