"""Weights in bfloat16 whose float32 masters are trained: updates, summed gradients, a kill, what is left at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_core.train.divergence import GKDSettings, Transfer, train_divergence
from kd_core.train.llmr import LLMRSettings, train_llmr
from kd_core.train.minillm import MiniLLMSettings, train_minillm
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState
from kd_core.train.supervised import train_supervised
from kd_core.windows.train import WindowTrainingSettings
from tests.kd_core.train.test_loops import PAIRS, SOURCES, rl, run, supervised

Make = Callable[..., Any]
OPTIMIZER = OptimizerSettings(learning_rate=1e-3, precision="bfloat16_weights")
FEW = vars(rl(optimizer=OPTIMIZER, steps=4, validate_every=2))


def budget(settings: type[Any], **more: Any) -> Any:
    return settings(
        **{name: FEW[name] for name in ("steps", "validate_every", "batch", "optimizer", "sampling")}, **more
    )


def loop_of(kind: str, teacher: Any) -> Callable[[TrainState], Iterator[StepMetrics]]:
    """Each method's loop, so that each is seen to run on such weights."""
    match kind:
        case "supervised":
            chosen = supervised(max_steps=4)
            return lambda state: train_supervised(state, PAIRS, PAIRS, chosen, 0)
        case "llmr":
            return lambda state: train_llmr(state, teacher, SOURCES, SOURCES, LLMRSettings(**FEW), 0)
        case "gkd":
            given = Transfer(SOURCES, PAIRS.target)
            return lambda state: train_divergence(state, teacher, given, SOURCES, budget(GKDSettings), 0)
    return lambda state: train_minillm(state, teacher, SOURCES, SOURCES, budget(MiniLLMSettings), 0)


@pytest.mark.parametrize("kind", ["supervised", "llmr", "gkd", "minillm"])
def test_every_method_trains_them_and_goes_on_after_a_kill_byte_for_byte(
    make_t5: Make, tmp_path: Path, kind: str
) -> None:
    loop = loop_of(kind, make_t5(seed=5).bfloat16())
    whole = TrainState.start(make_t5(seed=4).float(), OPTIMIZER)
    before = {name: master.clone() for name, master in whole.trained.items()}
    log = run(loop, whole)
    first = TrainState.start(make_t5(seed=4).float(), OPTIMIZER)
    first_log = run(loop, first, 2)
    first.save(tmp_path, first_log)
    second = TrainState.start(make_t5(seed=4).float(), OPTIMIZER)
    assert second.load(tmp_path) + run(loop, second) == log
    for name, master in whole.trained.items():
        assert (master.dtype, whole.parameters[name].dtype) == (torch.float32, torch.bfloat16)
        assert torch.equal(master.bfloat16(), whole.parameters[name]), name
        assert torch.equal(master, second.trained[name]), name
    assert not torch.equal(before["shared.weight"], whole.trained["shared.weight"])


def test_updates_too_small_for_bfloat16_are_not_lost() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    tiny = OptimizerSettings(learning_rate=1e-4, max_grad_norm=0, precision="bfloat16_weights")
    state = TrainState.start(model, tiny)
    for _ in range(100):  # each of 1e-4, where the next numbers of bfloat16 below 1 are 1 - 2^-8 and 1 - 2^-7
        model.weight.sum().backward()
        state.apply(tiny, 100, {"loss": [torch.tensor(0.0)]})
    assert float(state.trained["weight"].detach()) == pytest.approx(0.99, abs=1e-5)
    assert float(model.weight.detach()) == 1 - 2**-8 * 3  # 0.98828, the nearest to 0.99
    state.finish()
    assert model.weight.dtype == torch.float32
    assert float(model.weight.detach()) == pytest.approx(0.99, abs=1e-5)


def test_gradients_of_micro_batches_are_summed_in_float32() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    state = TrainState.start(model, OPTIMIZER)
    for share in (1.0, 2**-9, 2**-9):  # in bfloat16, 1 + 2^-9 is 1
        (share * model.weight.sum()).backward()
    assert model.weight.grad is None
    gradient = state.trained["weight"].grad
    assert gradient is not None
    assert float(gradient) == 1 + 2**-8


def test_a_model_that_was_left_can_be_trained_again() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    TrainState.start(model, OPTIMIZER).finish()
    model.weight.sum().backward()
    assert model.weight.grad is not None


def test_training_on_windows_refuses_them() -> None:
    with pytest.raises(ValueError, match="precision must be float32 or bfloat16 for training on windows"):
        WindowTrainingSettings(optimizer=OPTIMIZER)
