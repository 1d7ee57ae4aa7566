"""Training that has blown up is said to have, before a weight is touched and before anything is drawn from nan."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kd_core.models.policy import encode
from kd_core.rollout.beam_search import BeamSettings, beam_search
from kd_core.rollout.mixed_sampling import sample_mixed
from kd_core.rollout.responses import NotFiniteError
from kd_core.rollout.sampling import SamplingSettings, greedy, sample
from kd_core.train.state import OptimizerSettings, TrainState
from kd_core.windows.free_running import free_run
from tests.kd_core.windows.test_gpt_neo import tiny_gpt_neo

Make = Callable[..., Any]
SOURCE = torch.tensor([[3, 4, 5], [8, 9, 0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


@pytest.mark.parametrize(("loss", "gradient"), [(float("nan"), 0.1), (float("inf"), 0.1), (1.0, float("nan"))])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_an_update_that_is_no_number_touches_no_weight(
    make_t5: Make, loss: float, gradient: float, max_grad_norm: float
) -> None:
    settings = OptimizerSettings(max_grad_norm=max_grad_norm)
    state = TrainState.start(make_t5(), settings)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    for parameter in state.model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    with pytest.raises(NotFiniteError, match=r"is (nan|inf)\nlower the learning rate"):
        state.apply(settings, 10, {"loss": [torch.tensor(loss)]})
    assert all(torch.equal(before[name], p) for name, p in state.model.named_parameters())
    assert not state.optimizer.state


@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_drawn_from_weights_that_have_blown_up(make_t5: Make, value: float, top_k: int) -> None:
    whole, broken = make_t5(vocab_size=300), make_t5(vocab_size=300)
    with torch.no_grad():
        broken.decoder.final_layer_norm.weight.fill_(value)
        memory, other = encode(broken, SOURCE, MASK), encode(whole, SOURCE, MASK)
    settings, rng = SamplingSettings(max_new_tokens=3, top_k=top_k), torch.Generator().manual_seed(0)
    for write in (
        lambda: sample(broken, memory, settings, rng),
        lambda: greedy(broken, memory, 3),
        lambda: sample_mixed(broken, memory, whole, other, 0.2, settings, rng),
        lambda: beam_search(broken, memory, BeamSettings(num_beams=2, max_new_tokens=3)),
    ):
        with pytest.raises(NotFiniteError, match=r"writes from is nan\n.*lower the learning rate"):
            write()


def test_free_running_from_weights_that_have_blown_up_is_refused() -> None:
    model = tiny_gpt_neo()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    context, true = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[2, 3]])
    with pytest.raises(NotFiniteError, match="writes from is nan"):
        list(free_run(model, context, true, torch.rand(1, 2, dtype=torch.float64), SamplingSettings()))
