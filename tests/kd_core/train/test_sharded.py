"""Student and teacher whose layers two ranks share out learn what two ranks with whole models do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kd_core.losses.rewards import RewardSettings
from kd_core.models.backends.sharded import shard, weights
from kd_core.models.policy import backend_of
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import BatchSettings
from kd_core.train.divergence import JSSettings, Transfer, train_divergence
from kd_core.train.llmr import train_llmr
from kd_core.train.minillm import MiniLLMSettings, train_minillm
from kd_core.train.ranks import Ranks
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState
from kd_core.train.supervised import SupervisedSettings, train_supervised
from tests.kd_core.models.backends.families import GROUPED
from tests.kd_core.together import together
from tests.kd_core.train.test_loops import PAIRS, SOURCES, rl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STEPS = 8  # more than an epoch, in which one micro-batch has a single row
ADAM = OptimizerSettings(learning_rate=1e-3, max_grad_norm=0.1)
BATCH = BatchSettings(micro_batch_rows=3, micro_batches=2)
COMMON: dict[str, Any] = {
    "steps": STEPS,
    "validate_every": STEPS,
    "sampling": SamplingSettings(max_new_tokens=6),
    "batch": BATCH,
    "optimizer": ADAM,
}
ONCE = {"batch": BatchSettings(micro_batch_rows=3, micro_batches=1)}  # prompts are read once, for rollout and update
KINDS = ("supervised", "in float32", "js once", "minillm", "llmr once", "llmr held", "llmr reused", "llmr teacher")
Trained = tuple[list[StepMetrics], dict[str, torch.Tensor]]


def model_of(seed: int, layers: int, dtype: torch.dtype = torch.float64) -> Any:
    config = AutoConfig.for_model("llama", **(GROUPED | {"num_hidden_layers": layers}), pad_token_id=0, eos_token_id=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
        for x in model.parameters():
            x.data += 0.2 * torch.randn_like(x)
    backend_of(model)
    return model


def loop_of(kind: str, teacher: Any, start: Any) -> Callable[[TrainState], Iterator[StepMetrics]]:
    match kind:
        case "supervised" | "in float32":
            chosen = SupervisedSettings(epochs=2, max_steps=STEPS, validate_every=STEPS, batch=BATCH, optimizer=ADAM)
            return lambda state: train_supervised(state, PAIRS, PAIRS, chosen, 0)
        case "js once":
            js = JSSettings(**(COMMON | ONCE))
            return lambda state: train_divergence(state, teacher, Transfer(SOURCES, PAIRS.target), SOURCES, js, 0)
        case "minillm":
            mini = MiniLLMSettings(**COMMON, updates_per_rollout=2, teacher_mix=0.3)
            return lambda state: train_minillm(state, teacher, SOURCES, SOURCES, mini, 0)
    held = kind == "llmr held"
    settings = rl(
        **(COMMON | (ONCE if "once" in kind else {})),
        updates_per_rollout=3 if kind == "llmr reused" else 1,
        rollouts_per_source=2 if held else 1,
        reverse_kl=0.5 if held else 0.0,
        start_kl=0.5 if held else 0.0,
        keep="reverse_kl" if kind == "llmr reused" else "last",
        reward=RewardSettings(baseline="leave_one_out" if held else "value", truncated="drop", reward_scale=5.0),
    )
    return lambda state: train_llmr(state, teacher, SOURCES, SOURCES, settings, 0, start=start if held else None)


def trained(
    kind: str, *, sharded: bool, stop: int = STEPS, resume: Path | None = None, save: Path | None = None
) -> Trained:
    """A training by the ranks that are here, to some step, from a checkpoint or from nothing, and to a checkpoint."""
    dtype = torch.float32 if "float32" in kind else torch.float64
    student, teacher, start = model_of(1, 2, dtype), model_of(2, 3, dtype), model_of(1, 2, dtype)
    in_parts = (teacher,) if kind == "llmr teacher" else (student, teacher, start)
    for model in in_parts if sharded else ():
        shard(model, torch.device("cpu"))
    ranks = replace(Ranks.here(), in_step=sharded)
    state, log = TrainState.start(student, ADAM, ranks), list[StepMetrics]()
    if resume is not None:
        log = state.load(resume)
    for row in loop_of(kind, teacher, start)(state):
        log.append(row)
        if row.step == stop:
            break
    if save is not None:
        tensors = state.tensors()
        if ranks.is_first:
            state.save(save, log, tensors)
        ranks.barrier()
    found = weights(student, wanted=True) or student.state_dict()
    return log, {name: x.detach().clone() for name, x in found.items()}


def both_trained() -> dict[str, tuple[Trained, Trained]]:
    return {kind: (trained(kind, sharded=False), trained(kind, sharded=True)) for kind in KINDS}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Trained, Trained]]]:
    return together(both_trained, 2, tmp_path_factory.mktemp("ranks"))


def assert_same(found: Trained, expected: Trained, within: float = 1e-9) -> None:
    assert [row.step for row in found[0]] == [row.step for row in expected[0]]
    for row, one in zip(found[0], expected[0], strict=True):
        assert row.values == pytest.approx(one.values, abs=within, rel=within), row.step
    for name, weight in expected[1].items():
        torch.testing.assert_close(found[1][name], weight, atol=within, rtol=within)


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_models_train_as_whole_ones_do(ranks: list[dict[str, tuple[Trained, Trained]]], kind: str) -> None:
    """All that is logged, and weights, with gradients that are clipped; a rank may be without rows."""
    for rank in ranks:
        whole, parted = rank[kind]
        assert whole[0][-1].step == STEPS
        assert max(row.values.get("grad_norm", 0.0) for row in whole[0]) > ADAM.max_grad_norm
        assert_same(parted, whole, 1e-4 if "float32" in kind else 1e-9)


@pytest.mark.parametrize("sharded", [True, False])
def test_a_training_goes_on_sharded_or_whole(tmp_path: Path, *, sharded: bool) -> None:
    """Stopped with rollouts in flight and weights to keep; sharded first and whole then, by one process, or the other
    way round."""
    for name in ("first", "second", "checkpoint"):
        (tmp_path / name).mkdir()
    folder = tmp_path / "checkpoint"
    expected = trained("llmr reused", sharded=False)
    if sharded:
        together(stopped, 2, tmp_path / "first", folder)
        found = trained("llmr reused", sharded=False, resume=folder)
    else:
        trained("llmr reused", sharded=False, stop=5, save=folder)
        found, other = together(resumed, 2, tmp_path / "second", folder)
        assert_same(other, expected)
    assert_same(found, expected)


def stopped(folder: Path) -> None:
    trained("llmr reused", sharded=True, stop=5, save=folder)


def resumed(folder: Path) -> Trained:
    return trained("llmr reused", sharded=True, resume=folder)
