"""What teacher and student make of the same tokens, against torch on whole logits."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from kd_core.losses import lm_head
from kd_core.losses.agreement import agreement, top_overlap
from kd_core.losses.divergence_head import TeacherStates
from kd_core.losses.head import Head


def test_the_numbers_are_those_of_whole_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "CHUNK_NUMBERS", 40 * 12)  # three tokens a chunk
    torch.manual_seed(0)
    p_head, q_head = Head(torch.randn(40, 5).double()), Head(torch.randn(40, 3).double())
    seen, hidden, target = torch.randn(11, 5).double(), torch.randn(11, 3).double(), torch.randint(0, 40, (11,))
    found = agreement(TeacherStates(seen, p_head), target, (hidden, q_head))
    p, q = Categorical(logits=p_head.logits(seen)), Categorical(logits=q_head.logits(hidden))
    assert found.forward_kl_M is not None
    assert found.reverse_kl_M is not None
    assert found.overlap_M is not None
    torch.testing.assert_close(found.log_prob_M, p.log_prob(target), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.entropy_M, p.entropy(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.forward_kl_M, kl_divergence(p, q), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.reverse_kl_M, kl_divergence(q, p), rtol=0, atol=1e-12)
    tops = [set(row.topk(16).indices.tolist()) for row in torch.cat([p.logits, q.logits])]
    expected = [len(tops[i] & tops[11 + i]) / 16 for i in range(11)]
    assert found.overlap_M.tolist() == pytest.approx(expected)
    assert 0 < sum(expected) < 11


def test_without_a_student_only_the_teacher_speaks() -> None:
    found = agreement(TeacherStates(torch.randn(4, 5), Head(torch.randn(9, 5))), torch.zeros(4, dtype=torch.long))
    assert found.overlap_M is None
    assert found.reverse_kl_M is None
    assert (found.entropy_M > 0).all()


def test_a_small_vocabulary_is_all_among_the_likeliest() -> None:
    assert top_overlap(torch.randn(2, 7), torch.randn(2, 7)).tolist() == [1.0, 1.0]
