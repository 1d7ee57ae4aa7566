"""The whole of Algorithm 1 at GPT-Neo-125M's shape against the literal version: same windows, same losses.

Random weights, `WINDOWS` true windows of a random text, 2 rounds of 4 epochs. FLOPs are counted by PyTorch, and the
machine's matrix rate is that of a large product measured in the same process.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from benchmarks import reference_dad_dagger
from benchmarks.common import line
from kd_core.losses.soft_targets import HiddenLabels
from kd_core.models.policy import head_of
from kd_core.train.state import OptimizerSettings, TrainState
from kd_core.windows.cutting import contexts, trajectory_starts, window_targets
from kd_core.windows.dad_dagger import aggregate
from kd_core.windows.last_block import next_hidden, set_trainable, trunk
from kd_core.windows.train import Windows, WindowTrainingSettings, train_windows
from kd_core.windows.trunk import Trunk

Result = TypeVar("Result")
CONTEXT, HORIZON, ROUNDS, EPOCHS, BATCH, ALPHA = 128, 10, 2, 4, 32, 0.5
WINDOWS = 192
SETTINGS = WindowTrainingSettings(
    alpha=ALPHA, epochs=EPOCHS, patience=0, batch_rows=BATCH, optimizer=OptimizerSettings(learning_rate=2.5e-5)
)


@dataclass(frozen=True)
class Case:
    """A student, a teacher of the same shape, and a text."""

    student: Any
    teacher: Any
    text: Tensor
    context: int = CONTEXT

    @property
    def starts(self) -> Tensor:
        """Trajectories side by side, as Algorithm 1 reads."""
        return trajectory_starts(len(self.text), self.context, HORIZON, self.context + HORIZON)


def gpt_neo(seed: int, **shape: Any) -> Any:
    """GPT-Neo-125M's shape unless told otherwise; random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoForCausalLM(GPTNeoConfig(**_NEO_125M | shape)).eval()


_NEO_125M = {
    "vocab_size": 50_257,
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "attention_types": [[["global", "local"], 6]],
    "max_position_embeddings": 2048,
}


def run() -> Iterator[dict[str, Any]]:
    """Seconds, FLOPs and the share of the machine's matrix rate."""
    text = torch.randint(0, 50_257, (CONTEXT + WINDOWS,), generator=torch.Generator().manual_seed(0))
    yield from measure(Case(gpt_neo(0), gpt_neo(1), text))


def measure(case: Case) -> Iterator[dict[str, Any]]:
    """Run both once: the losses must agree before a number is given, and each draw up to float32's rounding."""
    written: list[Tensor] = []
    ours, seconds, flops = clocked(lambda: fast(case, written))
    (theirs, otherwise), reference_seconds, reference_flops = clocked(lambda: literal(case, written))
    if not np.allclose(ours, theirs, atol=1e-3, rtol=1e-4):
        raise AssertionError(f"losses differ by up to {np.abs(np.subtract(ours, theirs)).max()}")
    rate = matrix_rate()
    sizes = {"parameters": case.student.num_parameters(), "true_windows": len(case.text) - case.context}
    sizes |= {"rounds": ROUNDS, "epochs": EPOCHS, "context": case.context, "updates": len(ours)}
    sizes |= {"draws": sum(each.numel() for each in written), "drawn_otherwise_in_float32": otherwise}
    yield line("dad_dagger", seconds, reference_seconds, "s", what="Algorithm 1", **sizes)
    yield line("dad_dagger", flops / 1e12, reference_flops / 1e12, "TFLOP", what="counted", **sizes)
    shares = flops / seconds / rate, reference_flops / reference_seconds / rate
    yield line("dad_dagger", *shares, "of the matrix rate", what=f"of {rate / 1e9:.0f} GFLOP/s", **sizes)


def clocked(algorithm: Callable[[], Result]) -> tuple[Result, float, float]:
    """Its result, seconds and counted FLOPs; counting costs microseconds an operation, and both are counted."""
    begun = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        result = algorithm()
    return result, time.perf_counter() - begun, float(counter.get_total_flops())


def fast(case: Case, written: list[Tensor]) -> list[float]:
    """Ours: the trunk and the labels once a window, one query of the last block a window and epoch.

    Returns the losses, and leaves in `written` the tokens that each round's trajectories wrote, (B, HORIZON - 1).
    """
    student, head = copy.deepcopy(case.student), head_of(case.teacher)
    set_trainable(student, "last_block")
    targets = window_targets(len(case.text), case.context)
    seen, true = contexts(case.text, targets, case.context), case.text[targets]
    below, labels = _below(student, seen), HiddenLabels(_answers(case.teacher, seen), head)
    data, losses = [Windows(below, true[:, None], labels)], []
    few = Windows(below.of(student, torch.arange(1)), true[:1, None], labels.of(torch.arange(1)))
    for iteration in range(ROUNDS):
        state = TrainState.start(student, SETTINGS.optimizer)
        losses += [row.values["loss"] for row in train_windows(state, data, few, SETTINGS, iteration)]
        if iteration + 1 < ROUNDS:
            parts = list(aggregate(student, case.text, case.starts, case.context, HORIZON, iteration))
            written.append(torch.cat([part.context_ML[:, -1].view(-1, HORIZON - 1) for part in parts]))
            for part in parts:
                answered = HiddenLabels(_answers(case.teacher, part.context_ML), head)
                data.append(Windows(part.below, part.target_MP, answered))
    return losses


def literal(case: Case, written: list[Tensor]) -> tuple[list[float], int]:
    """The reference, with the same order of windows and the same random numbers.

    Returns the losses, and how many tokens it would have drawn otherwise than `written`, on a border of float32.
    """
    student = copy.deepcopy(case.student)
    trained = set_trainable(student, "last_block")
    targets = window_targets(len(case.text), case.context)
    seen, true = contexts(case.text, targets, case.context), case.text[targets]
    answered, losses, otherwise = reference_dad_dagger.answers(case.teacher, seen), [], 0
    for iteration in range(ROUNDS):
        optimizer = torch.optim.Adam(trained, lr=SETTINGS.optimizer.learning_rate, fused=True)
        orders = [np.random.default_rng([iteration, epoch]).permutation(len(true)) for epoch in range(EPOCHS)]
        batches = [index for order in orders for index in torch.from_numpy(order).split(BATCH)]
        losses += reference_dad_dagger.train(student, optimizer, seen, true, answered, ALPHA, batches)
        if iteration + 1 < ROUNDS:
            first = contexts(case.text, case.starts + case.context, case.context)
            uniform = torch.rand((len(first), HORIZON), generator=torch.Generator().manual_seed(iteration))
            steps, differ = reference_dad_dagger.roll_out(student, first, uniform, written[iteration])
            windows, otherwise = torch.stack(steps, 1).flatten(0, 1), otherwise + differ
            after = torch.stack([case.text[case.starts + case.context + step] for step in range(1, HORIZON)], 1)
            seen, true = torch.cat([seen, windows]), torch.cat([true, after.flatten()])
            answered = torch.cat([answered, reference_dad_dagger.answers(case.teacher, windows)])
    return losses, otherwise


def matrix_rate(size: int = 2048) -> float:
    """FLOP/s of a large float32 product here and now."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = min(_seconds(lambda: a @ b) for _ in range(5))
    return 2 * size**3 / best


def _seconds(call: Any) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@torch.no_grad()
def _below(student: Any, windows: Tensor) -> Trunk:
    return Trunk.cat([trunk(student, part) for part in windows.split(BATCH)])


@torch.no_grad()
def _answers(teacher: Any, windows: Tensor) -> Tensor:
    return torch.cat([next_hidden(teacher, part) for part in windows.split(BATCH)])
