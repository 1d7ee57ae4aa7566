"""Chunked against full logits; the hand-written backward against autograd."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from kd_core.losses import lm_head
from kd_core.losses.head import Head
from kd_core.losses.lm_head import ValueKind, blocks, chunk_rows, token_log_probs, token_scores, weighted_nll

M, D, V = 13, 6, 9


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "CHUNK_NUMBERS", 4 * V)  # 4 rows a chunk: 13 rows leave a last chunk of 1
    monkeypatch.setattr(lm_head, "BLOCK_ROWS", 4)
    monkeypatch.setattr(lm_head, "BLOCK_NUMBERS", 4 * 4)  # 4 of 9 columns a block: the last has 1, or 9 all


def tensors(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=rng, dtype=dtype) for shape in ((M, D), (V, D)))
    target, coefficient = torch.randint(0, V, (M,), generator=rng), torch.randn(M, generator=rng, dtype=dtype)
    return hidden, weight, target, coefficient


def test_chunks_cover_every_row_once() -> None:
    assert [(s.start, s.stop) for s in chunk_rows(M, V)] == [(0, 4), (4, 8), (8, 12), (12, 13)]
    assert [(s.start, s.stop) for s in chunk_rows(2, 10**9)] == [(0, 1), (1, 2)]


@pytest.mark.parametrize(("gib", "rows"), [(80, 1308), (24, 392), (1, 32)])
def test_a_chunk_is_as_large_as_a_cuda_devices_memory_allows(
    monkeypatch: pytest.MonkeyPatch, gib: int, rows: int
) -> None:
    monkeypatch.setattr(lm_head, "CHUNK_NUMBERS", 4 * 1024 * 1024)
    properties = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    # a 128th of the memory in float32, and never less than on a CPU: 16 MiB
    assert next(chunk_rows(10**6, 128_256, torch.device("cuda"))) == slice(0, rows)
    assert next(chunk_rows(10**6, 128_256, torch.device("cpu"))) == slice(0, 32)


def test_blocks_cover_every_row_once_and_are_whole_chunks_elsewhere() -> None:
    on_cpu = [(s.start, s.stop, width) for s, width in blocks(M, V, torch.device("cpu"))]
    assert on_cpu == [(0, 4, 4), (4, 8, 4), (8, 12, 4), (12, 13, 16)]
    elsewhere = [(s.start, s.stop, width) for s, width in blocks(M, V, torch.device("meta"))]
    assert elsewhere == [(0, 4, V), (4, 8, V), (8, 12, V), (12, 13, V)]


def test_what_one_chunk_holds_is_one_product_with_the_bits_of_full_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(blocks(4, V, torch.device("cpu"))) == [(slice(0, 4), V)]
    monkeypatch.setattr(lm_head, "CHUNK_NUMBERS", 4 * 1024 * 1024)
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn((700, 48), generator=rng), torch.randn((128, 48), generator=rng)
    target = torch.randint(0, 128, (700,), generator=rng)
    logits = hidden @ weight.T
    scores = token_scores(hidden, Head(weight), target, "max")
    assert torch.equal(scores.value_M, logits.amax(dim=1))
    assert torch.equal(scores.logit_M, logits.gather(1, target[:, None]).squeeze(1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_logsumexp_passes_over_blocks_that_hold_nothing(dtype: torch.dtype, tolerance: float) -> None:
    """In float32 too, where the least finite number would be -inf in powers of two."""
    hidden, weight, target, _ = tensors(dtype)
    bias = torch.zeros(V, dtype=dtype)
    bias[4:] = -float("inf")  # two of three blocks
    scores = token_scores(hidden, Head(weight, bias), target, "logsumexp")
    torch.testing.assert_close(scores.value_M, (hidden @ weight[:4].T).logsumexp(1), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", ["max", "softmax", "logsumexp"])
def test_logits_may_all_lie_far_below_0(kind: ValueKind) -> None:
    """Further than e^x reaches: only what they are above one another counts."""
    hidden, weight, target, _ = tensors()
    above = token_scores(hidden, Head(weight), target, kind).value_M
    below = token_scores(hidden, Head(weight, torch.full((V,), -1e4, dtype=torch.float64)), target, kind).value_M
    torch.testing.assert_close(below, above - 1e4, atol=1e-8, rtol=0)


def test_float32_values_are_as_near_as_float32_allows() -> None:
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn((8, 16), generator=rng), torch.randn((4096, 16), generator=rng)
    logits = hidden.double() @ weight.T.double()
    values: dict[ValueKind, torch.Tensor] = {
        "logsumexp": logits.logsumexp(1),
        "softmax": (logits.softmax(1) * logits).sum(1),
    }
    for kind, value in values.items():
        found = token_scores(hidden, Head(weight), torch.zeros(8, dtype=torch.long), kind).value_M
        torch.testing.assert_close(found.double(), value, atol=0, rtol=1e-6)


def test_token_scores_equal_full_logits() -> None:
    hidden, weight, target, _ = tensors()
    logits = hidden @ weight.T
    values: dict[ValueKind, torch.Tensor] = {
        "max": logits.max(1).values,
        "logsumexp": logits.exp().sum(1).log(),
        "softmax": (logits.softmax(1) * logits).sum(1),
    }
    for kind, value in values.items():
        scores = token_scores(hidden, Head(weight), target, kind)
        torch.testing.assert_close(scores.value_M, value, atol=1e-12, rtol=1e-12, msg=kind)
        torch.testing.assert_close(scores.logit_M, logits[torch.arange(M), target], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(scores.mean_M, logits.mean(1), atol=1e-12, rtol=1e-12)
    log_q = F.log_softmax(logits, 1)[torch.arange(M), target]
    torch.testing.assert_close(token_log_probs(hidden, Head(weight), target), log_q, atol=1e-12, rtol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, target, coefficient = tensors(torch.float32)
    log_q = F.log_softmax(1e4 * hidden @ weight.T, dim=1)[torch.arange(M), target]
    torch.testing.assert_close(token_log_probs(1e4 * hidden, Head(weight), target), log_q, rtol=1e-5, atol=1e-2)
    for entropy in (0.0, 0.3):
        loss = weighted_nll(1e4 * hidden, Head(weight), target, coefficient, entropy)
        assert loss.isfinite()
        if not entropy:
            torch.testing.assert_close(loss, -(coefficient * log_q).sum(), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_weighted_nll_and_gradients_equal_autograd_on_full_logits(entropy: float) -> None:
    hidden, weight, target, coefficient = tensors()
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = weighted_nll(hidden, Head(weight), target, coefficient, entropy)
    (3.0 * loss).backward()
    ours = hidden.grad, weight.grad
    hidden.grad = weight.grad = None

    log_q = F.log_softmax(hidden @ weight.T, dim=1)
    picked = log_q[torch.arange(M), target]
    full_entropy = -(log_q.exp() * log_q).sum(1)
    plain = -(coefficient * picked).sum() - entropy * full_entropy.sum()
    (3.0 * plain).backward()
    torch.testing.assert_close(loss, plain, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours, (hidden.grad, weight.grad), atol=1e-12, rtol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, target, coefficient = tensors()
    inputs = (hidden.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda h, w: weighted_nll(h, Head(w), target, coefficient, 0.2), inputs)


def test_half_precision_states_are_scored_in_float32() -> None:
    hidden, weight, target, coefficient = tensors(torch.float32)
    half = hidden.bfloat16().requires_grad_()
    loss = weighted_nll(half, Head(weight.bfloat16()), target, coefficient)
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_different_numbers_of_tokens_are_refused() -> None:
    hidden, weight, target, coefficient = tensors()
    with pytest.raises(ValueError, match="same number of tokens"):
        weighted_nll(hidden, Head(weight), target, coefficient[:-1])
