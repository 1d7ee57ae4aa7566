"""One LLMR update (sample, score, learn; batch 64) against stock `generate` and full logits; same models and tokens."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks import reference_llmr
from benchmarks.common import in_turn, line
from benchmarks.demo import Bench, demo_bench
from kd_core.losses.rewards import RewardSettings
from kd_core.models.t5 import encode
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import SamplingSettings, mixed_seed, sample
from kd_core.rollout.scoring import judge
from kd_core.train import batches
from kd_core.train.batches import BatchSettings, Sources
from kd_core.train.llmr import Experience, LLMRSettings, policy_gradient_loss, train_llmr
from kd_core.train.state import OptimizerSettings, TrainState

ROWS, SEED = 64, 0
LARGE_VOCABULARY = 32_128  # T5's


def settings_of(bench: Bench) -> LLMRSettings:
    """The paper's reward with the value baseline; nothing dropped, so that both count the same tokens."""
    return LLMRSettings(
        steps=10**6,
        validate_every=0,
        sampling=SamplingSettings(max_new_tokens=bench.max_new_tokens),
        reward=RewardSettings(baseline="value", truncated="bootstrap"),
        batch=BatchSettings(micro_batch_rows=ROWS, micro_batch_tokens=10**6, micro_batches=1),
        optimizer=OptimizerSettings(learning_rate=1e-4),
    )


def run() -> Iterator[dict[str, Any]]:
    """The demo's models, then the same with T5's vocabulary."""
    for vocab_size in (None, LARGE_VOCABULARY):
        yield from measure(demo_bench(vocab_size))


def measure(bench: Bench) -> Iterator[dict[str, Any]]:
    """Check in float64 that one update gives the same tokens, loss and weights; time it in float32, and its parts.

    In float32 two sums over 32,128 probabilities round differently, and a few draws in a hundred fall on a neighbour.
    """
    settings = settings_of(bench)
    check(bench, settings)
    ours, reference, _ = updates(bench, settings)
    (part, _), _ = ours(), reference()
    sizes = {
        "rows": ROWS,
        "vocabulary": bench.teacher.config.vocab_size,
        "teacher_parameters": bench.teacher.num_parameters(),
        "student_parameters": bench.student.num_parameters(),
        "mean_length": round(float(part.mask_BT.sum() / ROWS), 1),
        "max_new_tokens": bench.max_new_tokens,
    }
    yield line("llmr_update", *in_turn(ours, reference), "s/update", what="sample, score, learn", **sizes)
    for what, pair in parts(bench, settings, part).items():
        yield line("llmr_update", *in_turn(*pair), "s/update", what=what, **sizes)


def parts(
    bench: Bench, settings: LLMRSettings, part: Experience
) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Where the time goes: each third of an update, ours and the reference's, on the same rollouts."""
    student, teacher = bench.student, bench.teacher
    uniform = torch.rand((ROWS, bench.max_new_tokens), generator=torch.Generator().manual_seed(0))
    source, mask = bench.sources.batch(part.source_B, 0)
    tokens, real = part.tokens_BT, part.mask_BT
    gain = part.gain_BT / real.sum()

    def our_sample() -> object:
        with torch.no_grad():
            memory = encode(student, source, mask)
        return sample(student, memory, settings.sampling, torch.Generator().manual_seed(0))

    def our_score() -> object:
        return judge(teacher, encode(teacher, source, mask), part, settings.reward)

    def our_gradient() -> None:
        policy_gradient_loss(student, encode(student, source, mask), part, gain)[0].backward()
        student.zero_grad()

    def their_gradient() -> None:
        reference_llmr.loss(student, source, mask, tokens, real, gain).backward()  # type: ignore[no-untyped-call]
        student.zero_grad()

    return {
        "sample": (our_sample, lambda: reference_llmr.sample(student, source, mask, uniform)),
        "score": (our_score, lambda: reference_llmr.rewards(teacher, source, mask, tokens, real)),
        "policy gradient": (our_gradient, their_gradient),
    }


def updates(bench: Bench, settings: LLMRSettings) -> tuple[Callable[[], Any], Callable[[], Any], tuple[Any, Any]]:
    """Our update and the reference's on the same rows, each of its own copy of the student, and these copies."""
    sources = TokenRows(bench.sources.flat, bench.sources.offset_R1[: ROWS + 1])
    state = TrainState.start(copy.deepcopy(bench.student), settings.optimizer)
    student = copy.deepcopy(bench.student)
    optimizer = torch.optim.Adam(student.parameters(), lr=settings.optimizer.learning_rate, fused=True)
    seen: dict[int, Experience] = {}
    both = Sources(sources, sources)
    loop = train_llmr(state, bench.teacher, both, both, settings, SEED, observe=seen)
    next(loop)  # the look at the validation set before any update
    order = enumerate(batches.updates(sources.lengths.numpy(), settings.batch, SEED))

    def ours() -> tuple[Experience, float]:
        row = next(loop)
        return seen[0], row.values["loss"]

    def reference() -> tuple[torch.Tensor, float]:
        step, (rows,) = next(order)
        generator = torch.Generator().manual_seed(mixed_seed(SEED, step, 0))
        uniform = torch.rand((ROWS, bench.max_new_tokens), generator=generator)
        return reference_llmr.update(student, bench.teacher, optimizer, *sources.batch(rows, 0), uniform)

    return ours, reference, (state.model, student)


def check(bench: Bench, settings: LLMRSettings) -> None:
    """Raise AssertionError unless tokens, loss and updated weights agree in float64, drawn from float64 logits too."""
    exact = replace(bench, teacher=copy.deepcopy(bench.teacher).double(), student=copy.deepcopy(bench.student).double())
    ours, reference, (mine, stock) = updates(exact, settings)
    with reference_llmr.exact_layer_norm():
        (part, loss), (tokens, stock_loss) = ours(), reference()
    width = min(tokens.shape[1], part.tokens_BT.shape[1])
    real = part.mask_BT[:, :width]
    assert torch.equal(part.tokens_BT[:, :width] * real, tokens[:, :width] * real), "tokens differ"
    assert abs(loss - stock_loss) < 1e-6 * max(1.0, abs(stock_loss)), (loss, stock_loss)
    for (name, a), b in zip(mine.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6, msg=name)
