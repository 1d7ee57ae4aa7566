"""The whole of Algorithm 1 at GPT-Neo-125M's shape against the literal version: same windows, same losses.

Random weights, `WINDOWS` true windows of a random text, the paper's 3 rounds of 4 epochs. The reference is in float32;
ours has its trunks in float32 and in bfloat16, and in either its losses on the same windows are compared, and the
cross-entropy after what the student writes in the end is given. FLOPs are counted by PyTorch, and the machine's matrix
rate is that of a large product measured in the same process.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from benchmarks import reference_dad_dagger
from benchmarks.common import line
from kd_core.losses.soft_targets import HiddenLabels
from kd_core.models.policy import head_of, laid_out
from kd_core.train.state import OptimizerSettings, TrainState
from kd_core.windows.cutting import contexts, followers, trajectory_starts, window_targets
from kd_core.windows.dad_dagger import PLAIN, Aggregated, aggregate
from kd_core.windows.free_running import free_run
from kd_core.windows.last_block import next_hidden, set_trainable, trunk
from kd_core.windows.train import Windows, WindowTrainingSettings, train_windows, updates_per_epoch
from kd_core.windows.trunk import Trunk, TrunkPrecision

Result = TypeVar("Result")
CONTEXT, HORIZON, ROUNDS, EPOCHS, BATCH, ALPHA = 128, 10, 3, 4, 32, 0.5
WINDOWS = 96
LOSSES_WITHIN: dict[TrunkPrecision, float] = {"float32": 1e-3, "bfloat16": 5e-3}  # nats
_FIRST = torch.arange(1)
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
    """Run all once: the losses must agree before a number is given, and each draw up to float32's rounding."""
    ours = {precision: clocked(lambda p=precision: fast(case, p)) for precision in LOSSES_WITHIN}
    added = ours["float32"][0].added
    (theirs, otherwise), *reference = clocked(lambda: literal(case, added))
    on_same_windows = {"float32": ours["float32"][0], "bfloat16": fast(case, "bfloat16", added)}
    cross_entropy = free_running_ce(case, on_same_windows)
    sizes = {"parameters": case.student.num_parameters(), "true_windows": len(case.text) - case.context}
    sizes |= {"rounds": ROUNDS, "epochs": EPOCHS, "context": case.context, "updates": len(theirs)}
    sizes |= {"draws": sum(len(part.target_MP) for part in added), "drawn_otherwise_in_float32": otherwise}
    for precision, trained in on_same_windows.items():
        apart = float(np.abs(np.subtract(trained.losses, theirs)).max())
        if not apart <= LOSSES_WITHIN[precision]:  # nan neither
            raise AssertionError(f"losses differ by up to {apart:.1e} with trunks in {precision}")
        _, *measured = ours[precision]
        found = {"trunks": precision, "losses_apart": apart, "free_running_ce": cross_entropy[precision], **sizes}
        yield from _lines(measured, reference, precision, found)


def _lines(ours: list[float], reference: list[float], precision: TrunkPrecision, sizes: Any) -> Iterator[Any]:
    """Of seconds and FLOPs. The reference's matrix rate is float32's."""
    (seconds, flops), (reference_seconds, reference_flops) = ours, reference
    rate, float32_rate = matrix_rate(getattr(torch, precision)), matrix_rate(torch.float32)
    yield line("dad_dagger", seconds, reference_seconds, "s", what="Algorithm 1", **sizes)
    yield line("dad_dagger", flops / 1e12, reference_flops / 1e12, "TFLOP", what="counted", **sizes)
    shares = flops / seconds / rate, reference_flops / reference_seconds / float32_rate
    of = f"of {rate / 1e9:.0f} GFLOP/s, the reference's of {float32_rate / 1e9:.0f}"
    yield line("dad_dagger", *shares, "of the matrix rate", what=of, **sizes)


def clocked(algorithm: Callable[[], Result]) -> tuple[Result, float, float]:
    """Its result, seconds and counted FLOPs; counting costs microseconds an operation, and both are counted."""
    begun = time.perf_counter()
    onednn = {torch.ops.mkldnn._linear_pointwise: _flops_of_linear}
    with FlopCounterMode(display=False, custom_mapping=onednn) as counter:
        result = algorithm()
    return result, time.perf_counter() - begun, float(counter.get_total_flops())


def _flops_of_linear(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Of oneDNN's product, which PyTorch does not count: shapes (..., D), (V, D)."""
    return 2 * math.prod(x) * int(weight[0])


@dataclass(frozen=True)
class Trained:
    """What came of the rounds."""

    student: Any
    losses: list[float]
    added: list[Aggregated]  # by each round but the last


def fast(case: Case, precision: TrunkPrecision, added: Sequence[Aggregated] = ()) -> Trained:
    """Ours: the trunk and the labels once a window, one query of the last block a window and epoch.

    With `added`, rounds add the windows that another student has met, read by its own trunk.
    """
    student, head, is_rounded = copy.deepcopy(case.student), head_of(case.teacher), precision == "bfloat16"
    head = laid_out(head) if is_rounded else head
    set_trainable(student, "last_block")

    def ready(seen: Tensor, true: Tensor, below: Trunk | None = None) -> Windows:
        labels = HiddenLabels(_answers(case.teacher, seen, precision), head)
        return Windows(below or _below(student, seen, precision), true, labels)

    targets = window_targets(len(case.text), case.context)
    data = [ready(contexts(case.text, targets, case.context), case.text[targets, None])]
    few = Windows(data[0].below.of(student, _FIRST), data[0].target_MP[_FIRST], data[0].labels.of(_FIRST))
    trained = Trained(student, [], [])
    for iteration in range(ROUNDS):
        state = TrainState.start(student, SETTINGS.optimizer)
        rows = train_windows(state, data, few, SETTINGS, iteration, lay_out_head=is_rounded)
        # its last step, to go back to the best epoch, is none of Algorithm 1
        updates = EPOCHS * updates_per_epoch(data, SETTINGS)
        trained.losses.extend(row.values["loss"] for row in islice(rows, updates))
        if iteration + 1 == ROUNDS:
            break
        if added:
            data.append(ready(added[iteration].context_ML, added[iteration].target_MP))
            continue
        (part,) = aggregate(
            student, case.text, case.starts, case.context, HORIZON, iteration, trunk_precision=precision
        )
        trained.added.append(part)
        data.append(ready(part.context_ML, part.target_MP, part.below))
    return trained


def free_running_ce(case: Case, trained: dict[TrunkPrecision, Trained]) -> dict[TrunkPrecision, float]:
    """Of each student, in float32, after the contexts that the first of them writes: nats a token."""
    first = contexts(case.text, case.starts + case.context, case.context)
    true = followers(case.text, case.starts + case.context, HORIZON)
    uniform = torch.rand(true.shape, generator=torch.Generator().manual_seed(ROUNDS))
    steps = list(free_run(next(iter(trained.values())).student, first, true, uniform, PLAIN))
    seen = torch.cat([step.context_BL for step in steps])
    with torch.no_grad():
        logits = {name: head_of(each.student).logits(next_hidden(each.student, seen)) for name, each in trained.items()}
    return {name: float(F.cross_entropy(each, true.T.flatten())) for name, each in logits.items()}


def literal(case: Case, added: Sequence[Aggregated]) -> tuple[list[float], int]:
    """The reference, with the same order of windows and the same random numbers.

    Returns the losses, and how many tokens it would have drawn otherwise than `added` has, on a border of float32.
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
            written = added[iteration].context_ML[:, -1].view(-1, HORIZON - 1)
            steps, differ = reference_dad_dagger.roll_out(student, first, uniform, written)
            windows, otherwise = torch.stack(steps, 1).flatten(0, 1), otherwise + differ
            after = torch.stack([case.text[case.starts + case.context + step] for step in range(1, HORIZON)], 1)
            seen, true = torch.cat([seen, windows]), torch.cat([true, after.flatten()])
            answered = torch.cat([answered, reference_dad_dagger.answers(case.teacher, windows)])
    return losses, otherwise


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of a large product here and now."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    best = min(_seconds(lambda: a @ b) for _ in range(5))
    return 2 * size**3 / best


def _seconds(call: Any) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@torch.no_grad()
def _below(student: Any, windows: Tensor, precision: TrunkPrecision) -> Trunk:
    return Trunk.cat([trunk(student, part, precision=precision) for part in windows.split(BATCH)])


@torch.no_grad()
def _answers(teacher: Any, windows: Tensor, precision: TrunkPrecision) -> Tensor:
    return torch.cat([next_hidden(teacher, part, precision=precision) for part in windows.split(BATCH)])
