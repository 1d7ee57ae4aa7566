"""Divergences against loops written from their definitions, their limits, and what others call by the same names."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_core.losses import divergences

B, T, V = 2, 3, 7
Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def logits(seed: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TEACHER, STUDENT = logits(0), logits(1)


def slow_kl(a: list[float], b: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def slow_js_terms(p: list[float], q: list[float], beta: float) -> tuple[float, float]:
    m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    return beta * slow_kl(p, m), (1 - beta) * slow_kl(q, m)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.85])
def test_every_divergence_is_its_definition(beta: float) -> None:
    found = {
        "forward": divergences.forward_kl(TEACHER, STUDENT),
        "reverse": divergences.reverse_kl(TEACHER, STUDENT),
        "js teacher": divergences.js_teacher_term(TEACHER, STUDENT, beta),
        "js student": divergences.js_student_term(TEACHER, STUDENT, beta),
        "js": divergences.js(TEACHER, STUDENT, beta),
        "jsd": divergences.generalised_jsd(TEACHER, STUDENT, beta),
    }
    for b in range(B):
        for t in range(T):
            p, q = (x[b, t].exp().div(x[b, t].exp().sum()).tolist() for x in (TEACHER, STUDENT))
            terms = slow_js_terms(p, q, beta)
            expected = {"forward": slow_kl(p, q), "reverse": slow_kl(q, p), "js": sum(terms), "jsd": sum(terms)}
            expected |= {"js teacher": terms[0], "js student": terms[1]}
            for name, value in expected.items():
                assert float(found[name][b, t]) == pytest.approx(value, abs=1e-13), name


def test_by_hand() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4).

    KL(p||q) = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3). KL(q||p) = 1/4 ln(1/2) + 3/4 ln(3/2) = 3/4 ln 3 - ln 2.
    beta 1/2: m = (3/8, 5/8). KL(p||m) = 1/2 ln(4/3) + 1/2 ln(4/5) = 1/2 ln(16/15).
    KL(q||m) = 1/4 ln(2/3) + 3/4 ln(6/5).
    """
    p, q = (torch.tensor([[x]], dtype=torch.float64).log() for x in ([0.5, 0.5], [0.25, 0.75]))
    assert float(divergences.forward_kl(p, q)) == pytest.approx(0.5 * math.log(4 / 3), abs=1e-15)
    assert float(divergences.reverse_kl(p, q)) == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-15)
    teacher_term = 0.5 * 0.5 * math.log(16 / 15)
    student_term = 0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5))
    assert float(divergences.js_teacher_term(p, q, 0.5)) == pytest.approx(teacher_term, abs=1e-15)
    assert float(divergences.js_student_term(p, q, 0.5)) == pytest.approx(student_term, abs=1e-15)
    assert float(divergences.js(p, q, 0.5)) == pytest.approx(teacher_term + student_term, abs=1e-15)


def test_js_is_symmetric_at_one_half_alone() -> None:
    swapped = {beta: divergences.js(STUDENT, TEACHER, 1 - beta) for beta in (0.3, 0.5)}
    for beta, other in swapped.items():
        torch.testing.assert_close(divergences.js(TEACHER, STUDENT, beta), other, atol=1e-13, rtol=1e-13)
    assert not torch.allclose(divergences.js(TEACHER, STUDENT, 0.3), divergences.js(STUDENT, TEACHER, 0.3))


def test_js_at_the_ends_goes_to_0_like_the_two_kls() -> None:
    """JSD(beta)/beta -> KL(p||q) and JSD(beta)/(1 - beta) -> KL(q||p), to first order in what is left."""
    for small in (1e-4, 1e-6):
        for value, limit in (
            (divergences.js(TEACHER, STUDENT, small), divergences.forward_kl(TEACHER, STUDENT)),
            (divergences.js(TEACHER, STUDENT, 1 - small), divergences.reverse_kl(TEACHER, STUDENT)),
        ):
            assert (value < 50 * small).all()
            torch.testing.assert_close(value / small, limit, atol=0, rtol=1e4 * small)


def gradient(divergence: Divergence, of: torch.Tensor) -> torch.Tensor:
    student = of.clone().requires_grad_()
    (found,) = torch.autograd.grad(divergence(TEACHER, student).sum(), student)
    return found


def test_gradients_go_to_those_of_the_kls_at_the_ends() -> None:
    for beta, scale, limit in (
        (1e-6, 1e-6, divergences.forward_kl),
        (1 - 1e-6, 1e-6, divergences.reverse_kl),
    ):
        found = gradient(lambda p, q, beta=beta: divergences.js(p, q, beta), STUDENT) / scale  # type: ignore[misc]
        torch.testing.assert_close(found, gradient(limit, STUDENT), atol=1e-3, rtol=1e-3)


def test_the_gradient_of_the_forward_kl_is_q_minus_p() -> None:
    torch.testing.assert_close(
        gradient(divergences.forward_kl, STUDENT), STUDENT.softmax(-1) - TEACHER.softmax(-1), atol=1e-13, rtol=1e-13
    )


@pytest.mark.parametrize(
    "divergence",
    [
        divergences.forward_kl,
        divergences.reverse_kl,
        lambda p, q: divergences.js_teacher_term(p, q, 0.3),
        lambda p, q: divergences.js_student_term(p, q, 0.3),
        lambda p, q: divergences.js(p, q, 0.85),
    ],
    ids=["forward_kl", "reverse_kl", "js_teacher_term", "js_student_term", "js"],
)
def test_autograd_through_them_is_right(divergence: Divergence) -> None:
    assert torch.autograd.gradcheck(lambda q: divergence(TEACHER, q), STUDENT.clone().requires_grad_())


def trl_generalized_jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """TRL's published formula, per position: F.kl_div(x, y, log_target=True) is exp(y) (y - x), so KL(y || x)."""
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    if beta == 0:
        return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    if beta == 1:
        return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    share = torch.tensor(beta, dtype=log_q.dtype)
    log_m = torch.logsumexp(torch.stack([log_q + torch.log(1 - share), log_p + torch.log(share)]), dim=0)
    of_teacher = F.kl_div(log_m, log_p, reduction="none", log_target=True)
    of_student = F.kl_div(log_m, log_q, reduction="none", log_target=True)
    return (share * of_teacher + (1 - share) * of_student).sum(-1)


@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_gkds_beta_is_trls(beta: float) -> None:
    ours, theirs = divergences.generalised_jsd(TEACHER, STUDENT, beta), trl_generalized_jsd(STUDENT, TEACHER, beta)
    torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=1e-13)
    if beta not in (0.5,):  # the check would see the roles swapped
        assert not torch.allclose(ours, trl_generalized_jsd(TEACHER, STUDENT, beta))


numbers = st.lists(st.floats(-30, 30), min_size=2 * V, max_size=2 * V)


@given(numbers, st.floats(0.01, 0.99))
@settings(max_examples=200)
def test_divergences_are_at_least_0_and_js_is_bounded(values: list[float], beta: float) -> None:
    p, q = torch.tensor(values, dtype=torch.float64).view(2, 1, 1, V)
    for found in (divergences.forward_kl(p, q), divergences.reverse_kl(p, q)):
        assert float(found) > -1e-12
    for term in (divergences.js_teacher_term(p, q, beta), divergences.js_student_term(p, q, beta)):
        assert float(term) > -1e-12
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert -1e-15 <= float(divergences.js(p, q, beta)) <= bound + 1e-12


@given(st.integers(0, 10_000), st.floats(0.05, 0.95), st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=100)
def test_half_precision_logits_never_give_a_negative_jsd(seed: int, beta: float, apart: float) -> None:
    """At the size of a real vocabulary, for a student that is, nearly is, or is not its teacher; other divergences
    lose the digits that the softmax's own sum has lost, and no more."""
    rng = torch.Generator().manual_seed(seed)
    teacher = 8 * torch.randn(1, 2, 5000, generator=rng)
    student = teacher + apart * torch.randn(teacher.shape, generator=rng)
    p, q = teacher.bfloat16(), student.bfloat16()
    found = divergences.js(p, q, beta)
    assert found.dtype == torch.float32
    assert (found >= 0).all()
    assert (divergences.forward_kl(p, q) > -1e-6).all()
    if apart == 0:
        assert (found == 0).all()


def test_far_apart_distributions_stay_finite() -> None:
    p, q = torch.tensor([[[300.0, 0.0]]]), torch.tensor([[[0.0, 300.0]]])
    assert float(divergences.forward_kl(p, q)) == 300.0
    for beta in (0.1, 0.5):
        bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        assert float(divergences.js(p, q, beta)) == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_a_beta_that_is_no_share_is_refused(beta: float) -> None:
    for function in (divergences.js, divergences.generalised_jsd, divergences.js_teacher_term):
        with pytest.raises(ValueError, match=rf"beta must be in \(0, 1\), got {beta}"):
            function(TEACHER, STUDENT, beta)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 7\) and \(2, 3, 6\)"):
        divergences.forward_kl(TEACHER, STUDENT[..., :-1])
