"""DaD-DAgger's aggregation: what the student meets when it runs free, answered with the true next token.

Shape legend: N tokens of a text, B trajectories of a batch, H context tokens, T steps, M aggregated windows, D width.

Algorithm 1, one iteration after its training: from the first H tokens of every trajectory the student writes on. For
t = H+2 to H+T the window of the H tokens before t, of which the last t-H-1 are the student's own, is added with the
true token w_t (and, by whoever calls, the teacher's distribution after that window). The window at t = H+1 is all true
and in the data already. [the text; Algorithm 1 as printed starts there]
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_core.gpt_neo import Model, Trunk
from kd_core.sampling import SamplingSettings
from kd_core.windows import contexts, free_run

Sampled = SamplingSettings(max_new_tokens=1)  # temperature 1: the paper's


@dataclass(frozen=True)
class Aggregated:
    """Windows of the student's own making, trajectory by trajectory, step by step."""

    context_MH: Tensor
    target_M: Tensor  # the true next tokens
    trajectory_M: Tensor  # where in the text the trajectory starts
    step_M: Tensor  # 1 is the first window with a token of the student's
    left_M: Tensor  # whether the last token of the context is not that of the text
    below: Trunk  # the student's frozen part of each window, ready to be trained on


def aggregate(
    student: Model,
    text_N: Tensor,
    start_B: Tensor,
    context: int,
    horizon: int,
    seed: int,
    *,
    sampling: SamplingSettings = Sampled,
    batch_rows: int = 64,
) -> Iterator[Aggregated]:
    """Let the student run free from every start, and yield what that adds to the data, a batch of trajectories each.

    Shapes: (N,) ids, (B,) positions -> `Aggregated` of `horizon` - 1 windows a trajectory. A trajectory's random
    numbers depend on the seed and its place among the starts alone. Raises ValueError for a horizon below 2: its
    windows would all be true.
    """
    if horizon < 2:
        raise ValueError(f"horizon must be at least 2 for a student's own token to be seen, got {horizon}")
    generator = torch.Generator().manual_seed(seed)
    uniform_BT = torch.rand((len(start_B), horizon), generator=generator).to(text_N.device)
    for rows in torch.arange(len(start_B)).split(batch_rows):
        yield _batch(student, text_N, start_B[rows], context, uniform_BT[rows], sampling)


def _batch(
    student: Model, text_N: Tensor, start_B: Tensor, context: int, uniform_BT: Tensor, sampling: SamplingSettings
) -> Aggregated:
    horizon = uniform_BT.shape[1]
    true_BT = text_N[start_B[:, None] + context + torch.arange(horizon, device=text_N.device)]
    steps = list(free_run(student, contexts(text_N, start_B + context, context), true_BT, uniform_BT, sampling))[1:]
    trajectories, written = len(start_B), horizon - 1

    def in_order(columns: list[Tensor]) -> Tensor:
        return torch.stack(columns, dim=1).flatten(0, 1)

    context_MH = in_order([step.context_BH for step in steps])
    return Aggregated(
        context_MH=context_MH,
        target_M=true_BT[:, 1:].flatten(),
        trajectory_M=start_B.repeat_interleave(written),
        step_M=torch.arange(1, horizon, device=text_N.device).repeat(trajectories),
        left_M=context_MH[:, -1] != true_BT[:, :-1].flatten(),
        below=Trunk(
            in_order([step.below.normed_BHD for step in steps]), in_order([step.below.last_BD for step in steps])
        ),
    )
