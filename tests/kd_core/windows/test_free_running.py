"""Free running against a literal version that knows only the stock model."""

import pytest
import torch

from kd_core.rollout.sampling import SamplingSettings
from kd_core.windows.cutting import contexts, trajectory_starts
from kd_core.windows.free_running import free_run, free_running
from tests.kd_core.windows.test_gpt_neo import V, exact_attention, tiny_gpt_neo

__all__ = ["exact_attention"]

H, T = 7, 4
TEXT = torch.randint(0, V, (40,), generator=torch.Generator().manual_seed(3))


@pytest.mark.usefixtures("exact_attention")
@pytest.mark.parametrize("sliding", [True, False])
def test_free_running_is_that_of_the_stock_model_step_by_step(sliding: bool) -> None:
    model, settings = tiny_gpt_neo(window=5), SamplingSettings(temperature=0.8)
    starts = trajectory_starts(len(TEXT), H, T, T)
    true = torch.stack([TEXT[s + H : s + H + T] for s in starts])
    uniform = torch.rand((len(starts), T), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    steps = list(free_run(model, contexts(TEXT, starts + H, H), true, uniform, settings, sliding=sliding))
    assert all((step.below is not None) == sliding for step in steps)
    left_the_text = 0
    for row, start in enumerate(starts.tolist()):
        seen = TEXT[start : start + H].tolist()
        for t, step in enumerate(steps):
            read = seen[-H:] if sliding else seen
            with torch.no_grad():
                log_q = model(torch.tensor([read])).logits[0, -1].log_softmax(0)
            assert step.context_BL[row].tolist() == read
            torch.testing.assert_close(step.nll_B[row], -log_q[true[row, t]], atol=1e-11, rtol=1e-11)
            cumulative = (log_q / 0.8).softmax(0).cumsum(0)
            written = int((cumulative <= uniform[row, t]).sum())
            assert step.token_B[row] == written
            left_the_text += written != int(true[row, t])
            seen.append(written)
    assert left_the_text > len(starts), "the case that matters was not tested"


@pytest.mark.usefixtures("exact_attention")
def test_free_running_cross_entropy_starts_as_the_plain_one_whatever_the_batches() -> None:
    model, settings = tiny_gpt_neo(), SamplingSettings()
    starts = trajectory_starts(len(TEXT), H, T, 1)
    (found,) = free_running(model, TEXT, starts, H, T, seed=5, sampling=settings)
    with torch.no_grad():
        stock = model(contexts(TEXT, starts + H, H)).logits[:, -1].log_softmax(1)
    first = -stock.gather(1, TEXT[starts + H][:, None]).squeeze(1)
    torch.testing.assert_close(found.nll_BT[:, 0], first, atol=1e-11, rtol=1e-11)
    parts = list(free_running(model, TEXT, starts, H, T, seed=5, sampling=settings, batch_rows=3))
    torch.testing.assert_close(torch.cat([part.nll_BT for part in parts]), found.nll_BT)
    assert torch.equal(torch.cat([part.left_BT for part in parts]), found.left_BT)
    # a student that writes the text's own token sees the true text at the next step too
    kept = ~found.left_BT[:, 0]
    with torch.no_grad():
        second = model(contexts(TEXT, starts + H + 1, H)).logits[:, -1].log_softmax(1)
    expected = -second.gather(1, TEXT[starts + H + 1][:, None]).squeeze(1)
    agree = (found.nll_BT[:, 1] - expected).abs() < 1e-10
    assert kept.any(), "the student never wrote the text's own token: the case was not tested"
    assert torch.equal(agree, kept)
