"""What a teacher behind a server tells of its likeliest tokens, against its whole distribution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from kd_core.losses.divergence_head import Divergence, divergence_loss
from kd_core.losses.head import Head
from kd_core.models.backends.remote import Likeliest
from kd_core.models.policy import encode_rows
from kd_core.rollout.responses import Responses
from kd_core.rollout.teacher_labels import asked_labels
from kd_core.train.passes import LEAST_REST, teacher_states, teacher_top_k
from tests.kd_core.elsewhere import Elsewhere
from tests.kd_core.rollout.test_remote import CUT, EOS, MASK, PROMPTS, TOKENS, teacher

V = 11
WRITTEN = Responses(TOKENS, MASK, CUT)
DIVERGENCES = [
    Divergence("forward_kl"),
    Divergence("reverse_kl"),
    Divergence("js", 0.3),
    Divergence("js_teacher_term", 0.85),
    Divergence("js_student_term", 0.5),
]


def told(model: Any, top_k: int) -> Any:
    there = Elsewhere(model, EOS)
    return teacher_top_k(there, encode_rows(there, PROMPTS, torch.arange(3)), WRITTEN, top_k, V)


def of_student(seen: Any, divergence: Divergence, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(M,) of a student that has states and a head of its own."""
    rng = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(n, 6, generator=rng, dtype=torch.float64).to(dtype) for n in (int(MASK.sum()), V))
    return divergence_loss(hidden, Head(weight), seen, torch.ones(len(hidden), dtype=dtype), divergence)[1]


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda each: str(each.kind))
def test_the_bucket_is_a_lower_bound_and_exact_where_nothing_is_in_it(divergence: Divergence) -> None:
    """Outcomes that are taken together lose what tells them apart: the data-processing inequality."""
    model = teacher()
    exact = teacher_states(model, encode_rows(model, PROMPTS, torch.arange(3)), WRITTEN, V)
    all_of_it = of_student(exact, divergence)
    found = [of_student(told(model, k), divergence) for k in range(1, V + 1)]
    torch.testing.assert_close(found[V - 1], all_of_it, atol=1e-9, rtol=1e-9)
    assert bool((found[0] >= 0).all())
    for coarser, finer in pairwise(found):
        assert bool((coarser <= finer + 1e-5).all()), "more outcomes tell no less apart"
    assert float(found[0].mean()) < 0.95 * float(all_of_it.mean())


def test_a_rest_that_float32_cannot_tell_from_nothing_costs_no_fortune() -> None:
    """The reverse KL divides by it: log(1 / LEAST_REST) nats at the most, not what stands for the logarithm of 0."""
    model = teacher().float()
    model.lm_head.weight.data.mul_(30)
    kept = told(model, 3)
    left = 1 - kept.log_prob_MK.exp().sum(dim=1)
    assert float(left.min()) == pytest.approx(LEAST_REST, rel=1e-6)
    assert float((1 - told(model, V).log_prob_MK.exp().sum(dim=1)).abs().max()) < 1e-6, "as it is told"
    found = of_student(kept, Divergence("reverse_kl"), torch.float32)
    exact = of_student(told(model, V), Divergence("reverse_kl"), torch.float32)
    assert bool((found <= exact + 1e-3).all())
    unheld = Elsewhere(model, EOS)
    raw = asked_labels(unheld, encode_rows(unheld, PROMPTS, torch.arange(3)), TOKENS, MASK, 3, "bucket")
    assert float(of_student(raw, Divergence("reverse_kl"), torch.float32).max()) > 1000, "so it is without"


class Padded(Elsewhere):
    """One that counts a row of its embedding that is no token among its likeliest: that place is empty."""

    def likeliest(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], top_k: int
    ) -> list[Likeliest]:
        found = super().likeliest(prompts, targets, top_k)
        for each in found:
            each.log_prob_TK[:, -1], each.ids_TK[:, -1] = float("-inf"), each.ids_TK[:, 0]
        return found


def test_what_an_empty_place_leaves_out_is_in_the_bucket_however_many_were_asked_for() -> None:
    model = teacher().float()
    model.lm_head.weight.data.mul_(30)
    there = Padded(model, EOS)
    kept = teacher_top_k(there, encode_rows(there, PROMPTS, torch.arange(3)), WRITTEN, V, V)
    left = 1 - kept.log_prob_MK[:].exp().sum(dim=1)
    assert float(left.min()) == pytest.approx(LEAST_REST, rel=1e-6)
    found = of_student(kept, Divergence("reverse_kl"), torch.float32)
    exact = of_student(told(model, V), Divergence("reverse_kl"), torch.float32)
    assert bool((found <= exact + 1e-3).all())
