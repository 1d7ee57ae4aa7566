"""One LLMR update (sample, score, learn; batch 64) against stock `generate` and full logits; same models and tokens."""

import copy
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import reference_llmr
from benchmarks.common import Bench, demo_bench, in_turn, line
from kd_core.batching import BatchSettings
from kd_core.rewards import RewardSettings
from kd_core.sampling import SamplingSettings
from kd_core.train_llmr import Collector, Experience, LLMRSettings, Sources, _update
from kd_core.training import OptimizerSettings, TrainState

ROWS = 64
LARGE_VOCABULARY = 32_128  # T5's


def settings_of(bench: Bench) -> LLMRSettings:
    """The demo's reward with the value baseline; nothing dropped, so that both count the same tokens."""
    return LLMRSettings(
        steps=10**6,
        sampling=SamplingSettings(max_new_tokens=bench.max_new_tokens),
        reward=RewardSettings(baseline="value", truncated="bootstrap"),
        batch=BatchSettings(micro_batch_rows=ROWS, micro_batch_tokens=10**6, micro_batches=1),
        optimizer=OptimizerSettings(learning_rate=1e-4),
    )


def run() -> Iterator[dict[str, Any]]:
    """The demo's models, then the same with T5's vocabulary."""
    for vocab_size in (None, LARGE_VOCABULARY):
        bench = demo_bench(vocab_size)
        yield measure(bench)


def measure(bench: Bench) -> dict[str, Any]:
    """Check that one update gives the same tokens, loss and weights, then time updates in turn."""
    settings, rows = settings_of(bench), torch.arange(ROWS)
    sources = Sources(bench.sources, bench.sources)
    source, mask = bench.sources.batch(rows, 0)

    def both() -> tuple[Any, Any]:
        state = TrainState.start(copy.deepcopy(bench.student), settings.optimizer)
        student = copy.deepcopy(bench.student)
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-4, fused=True)
        collector = Collector(state.model, bench.teacher, sources, settings, None)
        seeds = iter(range(10**6)), iter(range(10**6))

        def ours() -> tuple[Experience, float]:
            part, memory = collector.collect(rows, next(seeds[0]), True)
            values = _update(state, [part], [memory], collector, settings)
            return part, values["loss"]

        def reference() -> tuple[torch.Tensor, float]:
            uniform = torch.rand((ROWS, bench.max_new_tokens), generator=torch.Generator().manual_seed(next(seeds[1])))
            return reference_llmr.update(student, bench.teacher, optimizer, source, mask, uniform)

        return (state.model, ours), (student, reference)

    (mine, ours), (stock, reference) = both()
    (part, loss), (tokens, stock_loss) = ours(), reference()
    check(part, tokens, loss, stock_loss, mine, stock)
    seconds, reference_seconds = in_turn(ours, reference)
    return line(
        "llmr_update",
        seconds,
        reference_seconds,
        "s/update",
        rows=ROWS,
        vocabulary=bench.teacher.config.vocab_size,
        teacher_parameters=bench.teacher.num_parameters(),
        student_parameters=bench.student.num_parameters(),
        mean_length=round(float(part.mask_BT.sum() / ROWS), 1),
        max_new_tokens=bench.max_new_tokens,
    )


def check(part: Experience, tokens: Any, loss: float, stock_loss: float, mine: Any, stock: Any) -> None:
    """Raise AssertionError unless tokens, loss and updated weights agree."""
    width = min(tokens.shape[1], part.tokens_BT.shape[1])
    assert torch.equal(part.tokens_BT[:, :width] * part.mask_BT[:, :width], tokens[:, :width] * part.mask_BT[:, :width])
    assert abs(loss - stock_loss) < 1e-4 * max(1.0, abs(stock_loss)), (loss, stock_loss)
    for (name, a), b in zip(mine.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3, msg=name)
