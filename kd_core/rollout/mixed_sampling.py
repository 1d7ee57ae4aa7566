"""Teacher-mixed rollouts: every token is drawn from a mixture of the teacher's and the student's distributions.

Shape legend: B sources, T length limit, R rows still running, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.head import full_precision
from kd_core.models.backends.sharded import whole
from kd_core.models.policy import Memory, Model
from kd_core.rollout.responses import Rollout
from kd_core.rollout.sampling import SamplingSettings, Within, Writer, sample_from


@torch.no_grad()
def sample_mixed(
    student: Model,
    memory: Memory,
    teacher: Model,
    teacher_memory: Memory,
    teacher_mix: float,
    settings: SamplingSettings,
    generator: torch.Generator,
    *,
    num_tokens: int | None = None,
    within: Within | None = None,
) -> Rollout:
    """Draw one output per source from alpha p + (1 - alpha) q, alpha = teacher_mix.

    Shapes: two Memories of the same B sources -> Rollout with (B, T'), T' <= max_new_tokens; its log-probabilities are
    the mixture's (reshaped by temperature, top_k and top_p where these are set). Raises ValueError for a mixture that
    is none. Source: MiniLLM, teacher-mixed sampling. As in `sampling`, a row does not depend on its neighbours, and
    `within` says which of a batch are here.
    """
    if not 0 < teacher_mix < 1:
        raise ValueError(f"teacher_mix must be in (0, 1) to be a mixture, got {teacher_mix}")
    limit = settings.max_new_tokens
    with whole(student, teacher):
        of_teacher = Writer(teacher, teacher_memory, limit, num_tokens)
        writer = _Mixture(student, memory, limit, num_tokens, of_teacher, teacher_mix)
        return sample_from(writer, settings, generator, within=within)


class _Mixture(Writer):
    """The student and another writer together; each reads its own start, the end of its prompt if it is causal."""

    def __init__(
        self, model: Model, memory: Memory, max_length: int, num_tokens: int | None, other: Writer, other_share: float
    ) -> None:
        super().__init__(model, memory, max_length, num_tokens)
        self.other, self.other_share = other, other_share

    def logits(self, token_R: Tensor | None) -> Tensor:
        """Log-probabilities. Shapes: see `Writer`."""
        both = super().logits(token_R), self.other.logits(token_R)
        log_q_RV, log_p_RV = (F.log_softmax(full_precision(logits_RV), dim=1) for logits_RV in both)
        return torch.logaddexp(log_q_RV + math.log1p(-self.other_share), log_p_RV + math.log(self.other_share))

    def keep(self, rows_R: Tensor) -> None:
        """See `Writer`."""
        super().keep(rows_R)
        self.other.keep(rows_R)
