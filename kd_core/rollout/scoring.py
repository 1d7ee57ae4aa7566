"""The teacher judges what the student wrote: one teacher-forced pass, reduced to (B, T).

Shape legend: B rollouts, T positions, M real tokens, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.lm_head import TokenScores, token_scores
from kd_core.losses.rewards import RewardSettings, induced_reward
from kd_core.models.backends.remote import RemoteModel, remote_scores
from kd_core.models.policy import Memory, Model, head_of, target_states
from kd_core.rollout.responses import Responses


@dataclass(frozen=True)
class Judgement:
    """The teacher's view of a batch of rollouts, (B, T) float32 in nats of logit, 0 where masked."""

    q_value_BT: Tensor
    value_BT: Tensor
    reward_BT: Tensor
    mask_BT: Tensor  # what counts: dropped truncated rollouts are False throughout


@torch.no_grad()
def judge(
    teacher: Model,
    memory: Memory,
    responses: Responses,
    settings: RewardSettings,
    *,
    num_tokens: int | None = None,
) -> Judgement:
    """q-values, state values and rewards of given outputs.

    Shapes: the teacher's Memory of B prompted sources, (B, T) responses -> `Judgement`. A bootstrapped truncated
    rollout needs the value after its last token: the pass is one position longer there. Source: LLMR Eq. 2 and 3;
    METHODS 1.2 to 1.4. Raises ValueError for a teacher behind a server and a reward that takes more than it gives.
    """
    mask_BT, truncated_B = responses.mask_BT, responses.truncated_B
    bootstrap_B = truncated_B if settings.truncated == "bootstrap" else torch.zeros_like(truncated_B)
    length_B = mask_BT.sum(dim=1)
    tokens_BU = F.pad(responses.tokens_BT, (0, 1))  # of the last position, only the value is wanted
    reach_B = length_B + bootstrap_B  # positions to score in each row
    mask_BU = torch.arange(tokens_BU.shape[1], device=mask_BT.device)[None] < reach_B[:, None]
    width = int(reach_B.max())
    tokens_BU, mask_BU = tokens_BU[:, :width], mask_BU[:, :width]

    if isinstance(teacher, RemoteModel):
        q_value_BU, value_BU = _remote_values(teacher, memory, responses, settings)
    else:
        hidden_MD, layout = target_states(teacher, memory, tokens_BU, mask_BU)
        scores = token_scores(hidden_MD, head_of(teacher, num_tokens), layout.pack(tokens_BU), settings.value)
        if settings.centre == "log_probs":  # what is taken off each state is its logsumexp, in place of the mean
            head, target_M = head_of(teacher, num_tokens), layout.pack(tokens_BU)
            scores = replace(scores, mean_M=token_scores(hidden_MD, head, target_M, "logsumexp").value_M)
        q_value_BU = layout.pad(scores.logit_M - scores.mean_M if settings.centre else scores.logit_M)
        value_BU = layout.pad(state_value(scores, settings))
    last_value_B = torch.where(bootstrap_B, value_BU.gather(1, (reach_B - 1)[:, None]).squeeze(1), 0.0)

    time = mask_BT.shape[1]
    q_value_BT, value_BT = (_fit(x, time) * mask_BT for x in (q_value_BU, value_BU))
    reward_BT = induced_reward(q_value_BT, value_BT, mask_BT, last_value_B)
    kept_BT = mask_BT & ~truncated_B[:, None] if settings.truncated == "drop" else mask_BT
    return Judgement(q_value_BT, value_BT, reward_BT * kept_BT, kept_BT)


def beyond_log_probs(settings: RewardSettings) -> str | None:
    """What of a reward takes more than log p(y_t) and the largest log p of each state, and what to set; or None."""
    if settings.centre != "log_probs":
        return (
            f"centre={settings.centre} needs its logits: set log_probs, which under baseline value is exactly the same"
        )
    if settings.value == "softmax":
        return "value=softmax needs its distribution: set max or logsumexp"
    return None


def _remote_values(
    teacher: RemoteModel, memory: Memory, responses: Responses, settings: RewardSettings
) -> tuple[Tensor, Tensor]:
    """q-values and state values by log-probabilities alone. Shapes: -> (B, T + 1) twice.

    Source: Eq. 2 with log p for f, which differ by a constant of each state.
    """
    problem = beyond_log_probs(settings)
    if problem is not None:
        raise ValueError(f"a teacher behind a server cannot be asked for this reward\n{problem}")
    log_prob_BU, largest_BU = remote_scores(teacher, memory, responses.tokens_BT, responses.mask_BT)
    return log_prob_BU, largest_BU if settings.value == "max" else torch.zeros_like(largest_BU)


def state_value(scores: TokenScores, settings: RewardSettings) -> Tensor:
    """V(s) of each state, centred like the q-values if these are. Shapes: TokenScores of M states -> (M,)."""
    return scores.value_M - scores.mean_M if settings.centre else scores.value_M


def _fit(x_BU: Tensor, time: int) -> Tensor:
    """Cut or zero-fill the second dimension to `time`."""
    if x_BU.shape[1] >= time:
        return x_BU[:, :time]
    return torch.cat([x_BU, x_BU.new_zeros(x_BU.shape[0], time - x_BU.shape[1])], dim=1)
