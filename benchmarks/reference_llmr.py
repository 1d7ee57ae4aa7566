"""LLMR from stock parts: `generate` for the rollouts, full (B, T, V) logits for reward and gradient.

The oracle and the yardstick.

Written the way the paper reads and the usual frameworks do it; nothing in it is slowed down. To get the very tokens
that ours draws, the logits processor inverts the cumulative distribution at the same uniform numbers (one softmax and
one cumulative sum: what sampling costs anyway, in place of `generate`'s own softmax and multinomial).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.models.t5.modeling_t5 import T5LayerNorm


class InverseDraw(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token per row: the one that the cumulative distribution reaches at the row's uniform number.

    `generate` hands on its logits cast to float32, where one number in a thousand falls on a neighbour at V = 32,128.
    The model's own, in the precision that it computes in, are taken from its forward pass (`see`, a hook).
    """

    def __init__(self, uniform_BT: Tensor) -> None:
        self.uniform_BT = uniform_BT
        self.logits_BV = torch.empty(0)

    def see(self, model: Any, arguments: Any, output: Any) -> None:
        """Keep the logits of the position that is about to be written."""
        self.logits_BV = output.logits[:, -1]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative = self.logits_BV.softmax(1).cumsum(1)
        threshold = self.uniform_BT[:, input_ids.shape[1] - 1, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=scores.shape[1] - 1)
        return torch.full_like(scores, float("-inf")).scatter_(1, token, 0.0)


@contextmanager
def exact_layer_norm() -> Iterator[None]:
    """The stock layer norm takes its variance in float32; in float64 it can be compared to the last digits."""

    def forward(self: Any, x: Tensor) -> Tensor:
        normed: Tensor = self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return normed

    stock = T5LayerNorm.forward
    T5LayerNorm.forward = forward
    try:
        yield
    finally:
        T5LayerNorm.forward = stock


def sample(student: Any, source: Tensor, mask: Tensor, uniform_BT: Tensor) -> Tensor:
    """(B, T) tokens by stock `generate`."""
    draw = InverseDraw(uniform_BT)
    hook = student.register_forward_hook(draw.see)
    try:
        out: Tensor = student.generate(
            input_ids=source,
            attention_mask=mask.long(),
            do_sample=False,
            max_new_tokens=uniform_BT.shape[1],
            logits_processor=LogitsProcessorList([draw]),
        )
    finally:
        hook.remove()
    return out[:, 1:]


def token_mask(tokens: Tensor, eos_id: int) -> Tensor:
    """True through the first end of sequence."""
    ended = (tokens == eos_id).cumsum(1)
    return (ended - (tokens == eos_id).long()) == 0


def rewards(teacher: Any, source: Tensor, source_mask: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Centred max-value rewards and state values from full teacher logits; truncated rows are bootstrapped.

    Each (B, T).
    """
    labels = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], 1)
    inputs = teacher._shift_right(labels)
    with torch.no_grad():
        logits = teacher(
            input_ids=source, attention_mask=source_mask.long(), decoder_input_ids=inputs, use_cache=False
        ).logits
    logits = logits - logits.mean(2, keepdim=True)
    q_value = logits.gather(2, labels[:, :, None]).squeeze(2)
    value = logits.amax(2)
    ended = (tokens == teacher.config.eos_token_id) & mask
    reward = (q_value[:, :-1] - torch.where(ended, 0.0, value[:, 1:])) * mask
    return reward, value[:, :-1] * mask


def loss(student: Any, source: Tensor, source_mask: Tensor, tokens: Tensor, mask: Tensor, gain: Tensor) -> Tensor:
    """-mean over real tokens of G_t log q(y_t), from full student logits."""
    logits = student(
        input_ids=source,
        attention_mask=source_mask.long(),
        decoder_input_ids=student._shift_right(tokens),
        use_cache=False,
    ).logits
    log_q = logits.log_softmax(2).gather(2, tokens[:, :, None]).squeeze(2)
    return -(gain * log_q * mask).sum() / mask.sum()


def update(
    student: Any, teacher: Any, optimizer: torch.optim.Optimizer, source: Tensor, mask: Tensor, uniform: Tensor
) -> tuple[Tensor, float]:
    """One LLMR update: sample, score, learn. Returns the tokens and the loss."""
    tokens = sample(student, source, mask, uniform)
    real = token_mask(tokens, student.config.eos_token_id)
    reward, value = rewards(teacher, source, mask, tokens, real)
    gain = (reward.flip(1).cumsum(1).flip(1) * real - value) / 100.0
    objective = loss(student, source, mask, tokens, real, gain.clamp(-1, 1))
    objective.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return tokens, float(objective.detach())
