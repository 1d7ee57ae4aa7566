"""Heads with a bias, a scale and a softcap: every chunked loss and score against full logits and autograd, float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses import lm_head
from kd_core.losses.divergence_head import Divergence, TeacherStates, divergence_loss
from kd_core.losses.divergences import forward_kl
from kd_core.losses.head import Head
from kd_core.losses.lm_head import ValueKind, token_scores, weighted_nll
from kd_core.losses.soft_targets import HiddenLabels, distillation_loss

M, D, E, V = 13, 6, 4, 9
Read = tuple[Tensor, Tensor, Tensor]  # hidden states, weight, bias


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "CHUNK_NUMBERS", 4 * V)  # 4 rows a chunk: 13 rows leave a last chunk of 1
    monkeypatch.setattr(lm_head, "BLOCK_ROWS", 4)
    monkeypatch.setattr(lm_head, "BLOCK_NUMBERS", 4 * 4)  # 4 of 9 columns a block: the last has 1, or 9 all


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TARGET = torch.randint(0, V, (M,), generator=torch.Generator().manual_seed(7))
COEFFICIENT = normal(M, seed=5)
# the softcap bends: the largest products are about as large as it is
GENERAL = pytest.mark.parametrize(
    ("scale", "softcap"), [(1.0, None), (0.3, None), (1.0, 2.0), (1.7, 3.0)], ids=["bias", "scale", "softcap", "all"]
)
TEACHER = TeacherStates(normal(M, E, seed=3), Head(normal(V, E, seed=4), normal(V, seed=8), 1.3, 2.5))


def read() -> Read:
    hidden, weight, bias = normal(M, D, seed=0), normal(V, D, seed=1), normal(V, seed=2)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def full(hidden: Tensor, weight: Tensor, bias: Tensor, scale: float, softcap: float | None) -> Tensor:
    """(M, V) logits as a model would write them down."""
    z = scale * (hidden @ weight.T + bias)
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def compare(ours: Callable[[Tensor, Head], Tensor], plain: Callable[[Tensor], Tensor], *of_head: Any) -> None:
    """Value and gradients of states, weight and bias."""
    read_ = read()
    loss, expected = ours(read_[0], Head(*read_[1:], *of_head)), plain(full(*read_, *of_head))
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    found, theirs = (torch.autograd.grad(3.0 * x, read_) for x in (loss, expected))
    torch.testing.assert_close(found, theirs, atol=1e-12, rtol=1e-12)
    assert all(gradient.abs().max() > 1e-2 for gradient in found), "a gradient that vanishes was compared"


@GENERAL
@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_the_likelihood_and_its_gradients(scale: float, softcap: float | None, entropy: float) -> None:
    def plain(logits: Tensor) -> Tensor:
        log_q = logits.log_softmax(1)
        likelihood = (COEFFICIENT * log_q[torch.arange(M), TARGET]).sum()
        return -likelihood + entropy * (log_q.exp() * log_q).sum()

    compare(lambda h, head: weighted_nll(h, head, TARGET, COEFFICIENT, entropy), plain, scale, softcap)


@GENERAL
def test_a_divergence_and_its_gradients(scale: float, softcap: float | None) -> None:
    teacher = full(TEACHER.hidden_ME, TEACHER.head.weight_VD, TEACHER.head.bias_V, 1.3, 2.5)  # type: ignore[arg-type]

    def plain(logits: Tensor) -> Tensor:
        return (COEFFICIENT * forward_kl(teacher[None], logits[None])[0]).sum()

    chosen = Divergence("forward_kl")
    compare(lambda h, head: divergence_loss(h, head, TEACHER, COEFFICIENT, chosen)[0], plain, scale, softcap)


@GENERAL
def test_a_mixed_target_and_its_gradients(scale: float, softcap: float | None) -> None:
    labels = HiddenLabels(TEACHER.hidden_ME, TEACHER.head)
    p = full(TEACHER.hidden_ME, TEACHER.head.weight_VD, TEACHER.head.bias_V, 1.3, 2.5).softmax(1)  # type: ignore[arg-type]

    def plain(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, 0.4 * F.one_hot(TARGET, V).double() + 0.6 * p)

    compare(lambda h, head: distillation_loss(h, head, TARGET, labels, 0.4)[0], plain, scale, softcap)


@GENERAL
@pytest.mark.parametrize("value", ["max", "softmax", "logsumexp"])
def test_scores(scale: float, softcap: float | None, value: ValueKind) -> None:
    hidden, weight, bias = (x.detach() for x in read())
    logits = full(hidden, weight, bias, scale, softcap)
    scores = token_scores(hidden, Head(weight, bias, scale, softcap), TARGET, value)
    values = {
        "max": logits.max(1).values,
        "logsumexp": logits.logsumexp(1),
        "softmax": (logits.softmax(1) * logits).sum(1),
    }
    torch.testing.assert_close(scores.logit_M, logits[torch.arange(M), TARGET], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(scores.value_M, values[value], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(scores.mean_M, logits.mean(1), atol=1e-12, rtol=1e-12)


def test_a_head_cut_to_its_first_tokens_has_their_logits() -> None:
    hidden, weight, bias = (x.detach() for x in read())
    head = Head(weight, bias, 0.5, 3.0)
    torch.testing.assert_close(head.first(5).logits(hidden), head.logits(hidden)[:, :5], atol=1e-12, rtol=1e-12)
    assert len(head.first(5)) == 5
    assert head.first(None) is head


def test_half_precision_is_bent_in_float32() -> None:
    # 30 tanh(z / 30) in bfloat16 has steps of 0.25 near its ends: the products must be float32 before
    hidden, weight, bias = (x.detach().bfloat16() for x in read())
    logits = Head(weight, bias, 8.0, 30.0).logits(hidden)
    product = F.linear(hidden, weight, bias).float()
    torch.testing.assert_close(logits, 30 * torch.tanh(8 * product / 30), atol=1e-5, rtol=1e-6)


def test_a_product_by_all_weights_is_not_that_of_the_first() -> None:
    weight, hidden = torch.randn(5, 3), torch.randn(2, 3)
    head = Head(weight, product=lambda x: x @ weight.T)
    assert torch.equal(head.first(3).logits(hidden), hidden @ weight[:3].T)
    assert head.first(5).product is head.product
