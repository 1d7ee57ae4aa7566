"""Chunked divergences and their hand-written gradients against the full-logit oracle and autograd."""

from typing import Any

import pytest
import torch

from kd_core.losses import divergences, lm_head
from kd_core.losses.divergence_head import (
    Divergence,
    DivergenceKind,
    TeacherStates,
    as_teacher,
    divergence_loss,
    value_and_gradient,
)
from kd_core.losses.head import Head
from kd_core.losses.soft_targets import BucketLabels, HiddenLabels, SampledLabels, TopKLabels

M, D, E, V = 13, 6, 4, 9
KINDS = ("forward_kl", "reverse_kl", "js_teacher_term", "js_student_term", "js")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "CHUNK_NUMBERS", 4 * V)  # 4 rows a chunk: 13 rows leave a last chunk of 1


def normal(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN, WEIGHT = normal(M, D, seed=0), normal(V, D, seed=1)
TEACHER = TeacherStates(normal(M, E, seed=2, scale=2.0), Head(normal(V, E, seed=3)))
COEFFICIENT = normal(M, seed=4)


def oracle(hidden: torch.Tensor, weight: torch.Tensor, kind: str, beta: float) -> torch.Tensor:
    """(M,) from full logits."""
    teacher, student = (TEACHER.hidden_ME @ TEACHER.head.weight_VD.T)[None], (hidden @ weight.T)[None]
    function: Any = getattr(divergences, kind)
    return (function(teacher, student, beta) if kind.startswith("js") else function(teacher, student))[0]


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.85])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_equal_autograd_on_dense_distributions(kind: Any, beta: float) -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    loss, found = divergence_loss(hidden, Head(weight), TEACHER, COEFFICIENT, Divergence(kind, beta))
    ours = torch.autograd.grad(3.0 * loss, (hidden, weight))
    plain = (COEFFICIENT * oracle(hidden, weight, kind, beta)).sum()
    theirs = torch.autograd.grad(3.0 * plain, (hidden, weight))
    torch.testing.assert_close(found, oracle(HIDDEN, WEIGHT, kind, beta), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(loss, plain, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert not found.requires_grad


P = (TEACHER.hidden_ME @ TEACHER.head.weight_VD.T).softmax(1)


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_with_a_bucket_give_the_divergence_of_one_more_outcome(kind: Any, k: int) -> None:
    best, ids = P.topk(k, dim=1)
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    labels = BucketLabels(ids.int(), best.log())
    loss, found = divergence_loss(hidden, Head(weight), labels, COEFFICIENT, Divergence(kind, 0.3))
    ours = torch.autograd.grad(3.0 * loss, (hidden, weight))

    def outcomes(p: torch.Tensor) -> torch.Tensor:  # logits of K + 1, which are log-probabilities
        kept = p.gather(1, ids)
        others = p.scatter(1, ids, 0.0).sum(1, keepdim=True)
        return torch.cat([kept, others], dim=1).log()[None]

    function: Any = getattr(divergences, kind)
    beta = (0.3,) if kind.startswith("js") else ()
    plain = function(outcomes(P), outcomes((hidden @ weight.T).softmax(1)), *beta)[0]
    theirs = torch.autograd.grad(3.0 * (COEFFICIENT * plain).sum(), (hidden, weight))
    # the mass of few others, 1 - sum, rounds
    torch.testing.assert_close(found, plain.detach(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", ["forward_kl", "js_teacher_term"])
def test_labels_that_are_distributions_give_theirs(kind: Any) -> None:
    best, ids = P.topk(4, dim=1)
    even = TopKLabels(ids.int(), best.log())
    counts = SampledLabels(torch.arange(V, dtype=torch.int32).expand(M, V), (4 * P).round() + (torch.arange(V) == 2))
    for labels in (even, counts):
        dense = labels.probabilities(slice(0, M), torch.empty(0, V)).double()
        assert (labels is even) == bool((dense > 0).all()), "0 is among the sampled ones' probabilities"
        hidden = HIDDEN.clone().requires_grad_()
        _, found = divergence_loss(hidden, Head(WEIGHT), labels, COEFFICIENT, Divergence(kind, 0.3))
        q = (HIDDEN @ WEIGHT.T).softmax(1)
        mixed = 0.3 * dense + 0.7 * q if kind == "js_teacher_term" else q
        weight = 0.3 if kind == "js_teacher_term" else 1.0
        expected = weight * (torch.xlogy(dense, dense) - dense * mixed.log()).sum(1)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_hidden_labels_are_the_teachers_states_to_the_bit() -> None:
    padded = Head(torch.cat([TEACHER.head.weight_VD, normal(2, E, seed=9)]))
    seen = as_teacher(HiddenLabels(TEACHER.hidden_ME, padded), V)
    results = [divergence_loss(HIDDEN, Head(WEIGHT), x, COEFFICIENT, Divergence("js"))[1] for x in (TEACHER, seen)]
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: Any) -> None:
    inputs = (HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_())
    chosen = Divergence(kind, 0.3)
    assert torch.autograd.gradcheck(lambda h, w: divergence_loss(h, Head(w), TEACHER, COEFFICIENT, chosen)[0], inputs)


def test_the_two_js_terms_add_up_in_value_and_gradient() -> None:
    results = []
    for kinds in (("js",), ("js_teacher_term", "js_student_term")):
        hidden = HIDDEN.clone().requires_grad_()
        losses = [
            divergence_loss(hidden, Head(WEIGHT), TEACHER, COEFFICIENT, Divergence(kind, 0.85))[0] for kind in kinds
        ]  # type: ignore[arg-type]
        total = torch.stack(losses).sum()
        results.append((total.detach(), *torch.autograd.grad(total, hidden)))
    torch.testing.assert_close(*results, atol=1e-12, rtol=1e-12)


def test_a_frozen_head_costs_no_gradient_and_gives_the_same() -> None:
    chosen = Divergence("reverse_kl")
    hidden = HIDDEN.clone().requires_grad_()
    (frozen,) = torch.autograd.grad(divergence_loss(hidden, Head(WEIGHT), TEACHER, COEFFICIENT, chosen)[0], hidden)
    weight = WEIGHT.clone().requires_grad_()
    both = torch.autograd.grad(divergence_loss(hidden, Head(weight), TEACHER, COEFFICIENT, chosen)[0], (hidden, weight))
    assert torch.equal(frozen, both[0])
    assert not divergence_loss(HIDDEN, Head(WEIGHT), TEACHER, COEFFICIENT, chosen)[0].requires_grad


def test_gkds_ends_are_the_kls() -> None:
    for beta, kind in ((0, "forward_kl"), (0.0, "forward_kl"), (0.5, "js"), (1, "reverse_kl"), (1.0, "reverse_kl")):
        assert Divergence.generalised_jsd(beta).kind == kind
    _, found = divergence_loss(HIDDEN, Head(WEIGHT), TEACHER, COEFFICIENT, Divergence.generalised_jsd(0.9))
    teacher, student = (TEACHER.hidden_ME @ TEACHER.head.weight_VD.T)[None], (HIDDEN @ WEIGHT.T)[None]
    torch.testing.assert_close(found[None], divergences.generalised_jsd(teacher, student, 0.9), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: Any) -> None:
    same = TeacherStates(HIDDEN.float(), Head(WEIGHT.float()))
    hidden = HIDDEN.float().requires_grad_()
    loss, found = divergence_loss(hidden, Head(WEIGHT.float()), same, torch.ones(M), Divergence(kind, 0.3))
    loss.backward()
    assert (found == 0).all()
    torch.testing.assert_close(hidden.grad, torch.zeros(M, D), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind: Any) -> None:
    half = TeacherStates(TEACHER.hidden_ME.bfloat16(), Head(TEACHER.head.weight_VD.bfloat16()))
    hidden, weight = HIDDEN.bfloat16().requires_grad_(), WEIGHT.bfloat16().requires_grad_()
    loss, found = divergence_loss(hidden, Head(weight), half, COEFFICIENT.float(), Divergence(kind))
    loss.backward()
    assert loss.dtype == found.dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    if kind == "js":
        assert (found >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_far_apart_logits_stay_finite(kind: Any) -> None:
    hidden = (200 * HIDDEN.float()).requires_grad_()
    far = TeacherStates(200 * TEACHER.hidden_ME.float(), Head(TEACHER.head.weight_VD.float()))
    loss, _ = divergence_loss(hidden, Head(WEIGHT.float()), far, COEFFICIENT.float(), Divergence(kind, 0.3))
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_what_does_not_fit_together_is_refused() -> None:
    chosen = Divergence("forward_kl")
    with pytest.raises(ValueError, match="same number of tokens"):
        divergence_loss(HIDDEN, Head(WEIGHT), TEACHER, COEFFICIENT[:-1], chosen)
    with pytest.raises(ValueError, match=r"one vocabulary, got heads of \(8, 9\) tokens"):
        divergence_loss(HIDDEN, Head(WEIGHT[:-1]), TEACHER, COEFFICIENT, chosen)
    with pytest.raises(ValueError, match=r"beta must be in \(0, 1\), got 1.5"):
        Divergence("js", 1.5)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "js_teacher_term", "js_student_term", "js"])
def test_mixed_precision_rounds_products_of_weights_and_nothing_else(kind: DivergenceKind) -> None:
    """Autocast lists vecdot among what it rounds to bfloat16: rows of the gradient then no longer add up to 0."""
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (3 * torch.randn(4, 500, generator=generator)).log_softmax(1), torch.randn(4, 500).log_softmax(1)
    value, gradient = value_and_gradient(log_p.clone(), log_q.clone(), Divergence(kind))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = value_and_gradient(log_p.clone(), log_q.clone(), Divergence(kind))
    assert rounded[0].dtype == torch.float32
    torch.testing.assert_close(rounded, (value, gradient), atol=1e-6, rtol=1e-5)
