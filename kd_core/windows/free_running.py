"""The student runs free over a text: what it writes in place of the true tokens, and what it thinks of these.

Shape legend: N tokens of a text, B trajectories, H context tokens, L tokens of a window, T steps, V vocabulary.

Free running starts at a true window: each step takes in what the student wrote (and drops the oldest token, unless
windows are packed), while the true text goes on beside it. That gives both what DaD-DAgger adds to its data (the
student's context, the true next token) and the free-running cross-entropy.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.head import full_precision
from kd_core.models.policy import Model, encode, head_of
from kd_core.rollout.responses import check_distribution
from kd_core.rollout.sampling import SamplingSettings, Writer, draw
from kd_core.windows.cutting import contexts, followers
from kd_core.windows.last_block import last_hidden, trunk
from kd_core.windows.trunk import Trunk, TrunkPrecision


@dataclass(frozen=True)
class FreeStep:
    """One step of free running in B trajectories."""

    context_BL: Tensor  # what the student sees: the true text at step 0, more and more of its own after
    below: Trunk | None  # what its frozen part makes of a sliding context: need not be computed again to train on it
    nll_B: Tensor  # -log q of the true next token, in nats
    token_B: Tensor  # what it writes instead


@torch.no_grad()
def free_run(
    model: Model,
    context_BH: Tensor,
    true_BT: Tensor,
    uniform_BT: Tensor,
    settings: SamplingSettings,
    *,
    sliding: bool = True,
    num_tokens: int | None = None,
    trunk_precision: TrunkPrecision = "float32",
) -> Iterator[FreeStep]:
    """The student runs free for T steps from true contexts, one `FreeStep` a step.

    Shapes: (B, H) ids, (B, T) the text that goes on, (B, T) uniform numbers in [0, 1) that choose the tokens. Sliding
    contexts stay H tokens long, as in exact windows, and are read anew at each step, for every token moves a position;
    the others grow, and only what was written last is read. Source: DaD-DAgger, Algorithm 1 (rollout), and
    its free-running cross-entropy. Raises NotFiniteError at the end for a model that writes from nan.
    """
    context_BL, log_probs = context_BH, []
    head, below, token_B, writer = head_of(model, num_tokens), None, None, None
    if not sliding:
        memory = encode(model, context_BH, torch.ones_like(context_BH, dtype=torch.bool))
        writer = Writer(model, memory, true_BT.shape[1], num_tokens)
    for step in range(true_BT.shape[1]):
        if writer is None:
            below = trunk(model, context_BL, precision=trunk_precision)
            logits_BV = head.logits(last_hidden(model, below))
        else:
            logits_BV = writer.logits(token_B)
        true_B = true_BT[:, step]
        nll_B = F.cross_entropy(full_precision(logits_BV), true_B, reduction="none")
        token_B, log_prob_B = draw(logits_BV, uniform_BT[:, step], settings)
        log_probs.append(log_prob_B)
        yield FreeStep(context_BL, below, nll_B, token_B)
        context_BL = torch.cat([context_BL[:, int(sliding) :], token_B[:, None]], dim=1)
    check_distribution(torch.cat(log_probs))


@dataclass(frozen=True)
class FreeRunning:
    """What free running over a text showed. Step 0 still sees the true text alone."""

    nll_BT: Tensor  # -log q of the true token at each step, in nats; its mean is the free-running cross-entropy
    token_BT: Tensor  # what the student wrote
    left_BT: Tensor  # whether that is another token than the text has


def free_running(
    model: Model,
    text_N: Tensor,
    start_B: Tensor,
    context: int,
    horizon: int,
    seed: int,
    *,
    sampling: SamplingSettings,
    sliding: bool = True,
    num_tokens: int | None = None,
    batch_rows: int = 64,
) -> Iterator[FreeRunning]:
    """The student's free-running cross-entropy from every start, step by step; a batch of starts at a time.

    Shapes: (N,) ids, (B,) positions where contexts start -> `FreeRunning` of (B, horizon) in all. Source: DaD-DAgger's
    metric over 10 generated tokens; the random numbers of a start depend on the seed and its place alone.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform_BT = torch.rand((len(start_B), horizon), generator=generator).to(text_N.device)
    for rows in torch.arange(len(start_B)).split(batch_rows):
        first_B = start_B[rows] + context
        true_BT = followers(text_N, first_B, horizon)
        first_BH = contexts(text_N, first_B, context)
        rolled = free_run(model, first_BH, true_BT, uniform_BT[rows], sampling, sliding=sliding, num_tokens=num_tokens)
        steps = list(rolled)
        token_BT = torch.stack([step.token_B for step in steps], dim=1)
        yield FreeRunning(torch.stack([step.nll_B for step in steps], dim=1), token_BT, token_BT != true_BT)
