"""DaD-DAgger's aggregation: what the student meets when it runs free, answered with the true next token.

Shape legend: N tokens of a text, B trajectories of a batch, H context tokens, T steps, M aggregated windows of L tokens
with P predictions each.

Algorithm 1, one iteration after its training: from the first H tokens of every trajectory the student writes on. For
t = H+2 to H+T the window of the H tokens before t, of which the last t-H-1 are the student's own, is added with the
true token w_t (and, by whoever calls, the teacher's distribution after that window). The window at t = H+1 is all true
and in the data already. [the text; Algorithm 1 as printed starts there] Packed, a trajectory is one window of T - 1
predictions, after H + 1 to H + T - 1 tokens.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_core.models.policy import Model
from kd_core.rollout.sampling import SamplingSettings
from kd_core.windows.cutting import contexts, followers
from kd_core.windows.free_running import free_run
from kd_core.windows.last_block import trunk
from kd_core.windows.trunk import Trunk, TrunkPrecision

PLAIN = SamplingSettings(max_new_tokens=1)  # temperature 1: the paper's


@dataclass(frozen=True)
class Aggregated:
    """Windows of the student's own making, trajectory by trajectory, step by step."""

    context_ML: Tensor
    target_MP: Tensor  # the true next tokens
    trajectory_M: Tensor  # where in the text the trajectory starts
    step_MP: Tensor  # 1 is the first prediction after a token of the student's
    left_MP: Tensor  # whether the token before the prediction is not that of the text
    below: Trunk  # the student's frozen part of each window, ready to be trained on


def aggregate(
    student: Model,
    text_N: Tensor,
    start_B: Tensor,
    context: int,
    horizon: int,
    seed: int,
    *,
    sampling: SamplingSettings = PLAIN,
    packed: bool = False,
    num_tokens: int | None = None,
    batch_rows: int = 64,
    batches: Iterable[int] | None = None,
    trunk_precision: TrunkPrecision = "float32",
) -> Iterator[Aggregated]:
    """Let the student run free from every start, and yield what that adds to the data, a batch of trajectories each.

    Shapes: (N,) ids, (B,) positions -> `Aggregated` of `horizon` - 1 predictions a trajectory. A trajectory's random
    numbers depend on the seed and its place among the starts alone: `batches` names those wanted, by default all.
    Raises ValueError for a horizon below 2: its windows would all be true.
    """
    if horizon < 2:
        raise ValueError(f"horizon must be at least 2 for a student's own token to be seen, got {horizon}")
    generator = torch.Generator().manual_seed(seed)
    uniform_BT = torch.rand((len(start_B), horizon), generator=generator).to(text_N.device)
    for number in range(-(-len(start_B) // batch_rows)) if batches is None else batches:
        rows = slice(number * batch_rows, (number + 1) * batch_rows)
        yield _batch(
            student, text_N, start_B[rows], context, uniform_BT[rows], sampling, packed, num_tokens, trunk_precision
        )


@torch.no_grad()
def _batch(
    student: Model,
    text_N: Tensor,
    start_B: Tensor,
    context: int,
    uniform_BT: Tensor,
    sampling: SamplingSettings,
    packed: bool,
    num_tokens: int | None,
    trunk_precision: TrunkPrecision,
) -> Aggregated:
    horizon = uniform_BT.shape[1]
    first_BH, true_BT = contexts(text_N, start_B + context, context), followers(text_N, start_B + context, horizon)
    rolled = free_run(
        student,
        first_BH,
        true_BT,
        uniform_BT,
        sampling,
        sliding=not packed,
        num_tokens=num_tokens,
        trunk_precision=trunk_precision,
    )
    steps = list(rolled)[1:]
    step_BP = torch.arange(1, horizon, device=text_N.device).expand(len(start_B), -1)
    last_BP = torch.stack([step.context_BL[:, -1] for step in steps], dim=1)
    left_BP = last_BP != true_BT[:, :-1]
    if packed:
        whole_BL = steps[-1].context_BL
        below = trunk(student, whole_BL, horizon - 1, trunk_precision)
        return Aggregated(whole_BL, true_BT[:, 1:], start_B, step_BP, left_BP, below)

    def in_order(columns: list[Tensor]) -> Tensor:
        return torch.stack(columns, dim=1).flatten(0, 1)

    below_T = [step.below for step in steps if step.below is not None]
    return Aggregated(
        context_ML=in_order([step.context_BL for step in steps]),
        target_MP=true_BT[:, 1:].reshape(-1, 1),
        trajectory_M=start_B.repeat_interleave(horizon - 1),
        step_MP=step_BP.reshape(-1, 1),
        left_MP=left_BP.reshape(-1, 1),
        below=Trunk(in_order([below.behind_BXD for below in below_T]), in_order([below.last_BPD for below in below_T])),
    )
