"""The teacher's judgement of rollouts against the bare forward pass: what the rewards cost on top."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import reference_llmr
from benchmarks.common import in_turn, line
from benchmarks.demo import Bench, demo_bench
from kd_core.losses.lm_head import ValueKind, chunk_rows
from kd_core.losses.rewards import RewardSettings
from kd_core.models.policy import encode, head_of, target_states
from kd_core.rollout.responses import Responses
from kd_core.rollout.sampling import SamplingSettings, sample
from kd_core.rollout.scoring import Judgement, judge

ROWS = 64
LARGE_VOCABULARY = 32_128
VALUES: tuple[ValueKind, ...] = ("max", "softmax", "logsumexp")


def run() -> Iterator[dict[str, Any]]:
    """The demo's models, then the same with T5's vocabulary."""
    for vocab_size in (None, LARGE_VOCABULARY):
        yield from measure(demo_bench(vocab_size))


def measure(bench: Bench) -> Iterator[dict[str, Any]]:
    """Each value against our bare pass and the stock one, after a check against full logits."""
    source, mask, tokens, real, truncated = rollouts(bench)
    check(bench, source, mask, tokens, real, truncated)
    references = {
        "bare forward, unpadded": bare_pass(bench.teacher, source, mask, tokens, real),
        "bare forward, transformers": stock_pass(bench.teacher, source, mask, tokens),
    }
    sizes = {"rows": len(tokens), "vocabulary": bench.teacher.config.vocab_size}
    sizes |= {"real_tokens": int(real.sum()), "max_new_tokens": bench.max_new_tokens}
    for value in VALUES:
        settings = RewardSettings(value=value, truncated="bootstrap")
        ours = partial(score, bench, source, mask, Responses(tokens, real, truncated), settings)
        for name, reference in references.items():
            seconds = in_turn(ours, reference)
            yield line("scoring", *seconds, "s/batch", reference_is=name, value=value, **sizes)


@torch.no_grad()
def score(bench: Bench, source: Tensor, mask: Tensor, responses: Responses, settings: RewardSettings) -> Judgement:
    """What is timed: the teacher reads the sources and judges the responses."""
    return judge(bench.teacher, encode(bench.teacher, source, mask), responses, settings)


@torch.no_grad()
def rollouts(bench: Bench) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sources with mask, and the student's samples that ended, with mask and truncation.

    Where a truncated output is bootstrapped, the value of one state more is asked for: not what is compared here.
    """
    source, mask = bench.sources.batch(torch.arange(ROWS), 0)
    memory = encode(bench.student, source, mask)
    generator = torch.Generator().manual_seed(0)
    drawn = sample(bench.student, memory, SamplingSettings(max_new_tokens=bench.max_new_tokens), generator)
    ended = ~drawn.truncated_B
    return source[ended], mask[ended], drawn.tokens_BT[ended], drawn.mask_BT[ended], drawn.truncated_B[ended]


def bare_pass(teacher: Any, source: Tensor, mask: Tensor, tokens: Tensor, real: Tensor) -> Callable[[], object]:
    """Encoder, decoder and logits, as ours computes them, and nothing made of them."""

    @torch.no_grad()
    def forward() -> object:
        hidden, _ = target_states(teacher, encode(teacher, source, mask), tokens, real)
        head = head_of(teacher)
        for rows in chunk_rows(len(hidden), len(head)):
            logits = head.logits(hidden[rows])
        return logits

    return forward


def stock_pass(teacher: Any, source: Tensor, mask: Tensor, tokens: Tensor) -> Callable[[], object]:
    """What transformers' own forward pass takes for the same padded batch."""
    inputs = teacher._shift_right(tokens)

    @torch.no_grad()
    def forward() -> object:
        return teacher(input_ids=source, attention_mask=mask.long(), decoder_input_ids=inputs, use_cache=False).logits

    return forward


def check(bench: Bench, source: Tensor, mask: Tensor, tokens: Tensor, real: Tensor, truncated: Tensor) -> None:
    """Raise AssertionError unless our rewards are those of full logits."""
    ours = score(bench, source, mask, Responses(tokens, real, truncated), RewardSettings(truncated="bootstrap"))
    reward, value = reference_llmr.rewards(bench.teacher, source, mask, tokens, real)
    torch.testing.assert_close(ours.reward_BT, reward, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(ours.value_BT, value, atol=2e-3, rtol=1e-3)
