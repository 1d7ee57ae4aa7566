"""Making the teacher's labels: what is kept of p for each prediction, from the teacher's final states.

Shape legend: M predictions, E teacher width, V vocabulary, K labels kept, N draws, C predictions of one chunk.

The readers are in kd_core/losses/soft_targets.py. What each kind loses is measured against the dense distribution
(`label_error`) and goes into the manifest.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.exponential import exp, exp_
from kd_core.losses.head import Head, full_precision
from kd_core.losses.lm_head import chunk_rows
from kd_core.losses.soft_targets import BucketLabels, HiddenLabels, SampledLabels, TeacherLabels, TopKLabels
from kd_core.models.backends.remote import RemoteModel, ragged
from kd_core.rollout.responses import NotFiniteError
from kd_core.rollout.sampling import first_above

LabelKind = Literal["hidden", "topk", "sampled"]
Tail = Literal["even", "bucket"]


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """What is kept of the teacher's distribution for each prediction.

    `hidden`: its final state, exact up to float16; `topk`: the k most probable tokens and the mass of the rest;
    `sampled`: how often each token came up in some draws, unbiased where the loss is linear in p.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    kind: LabelKind = "topk"
    top_k: int = 25
    draws: int = 16
    batch_rows: int = 64  # windows, or outputs, that the teacher reads at a time
    # of topk, what becomes of the rest: even = spread over all other tokens (biased); bucket = one more outcome
    tail: Tail = field(default="even", metadata={"later": True})

    def __post_init__(self) -> None:
        if self.kind not in ("hidden", "topk", "sampled"):
            raise ValueError(f"kind must be hidden, topk or sampled, got {self.kind!r}")
        if self.tail not in ("even", "bucket"):
            raise ValueError(f"tail must be even or bucket, got {self.tail!r}")
        if self.tail == "bucket" and self.kind != "topk":
            raise ValueError(
                f"tail bucket is of labels of kind topk, got kind {self.kind}\nset kind=topk, or leave tail out"
            )
        for name in ("top_k", "draws", "batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.draws > 255:
            raise ValueError(f"draws must be at most 255 (counts are bytes), got {self.draws}")


@torch.no_grad()
def make_labels(hidden_ME: Tensor, head: Head, settings: LabelSettings, uniform_MN: Tensor) -> TeacherLabels:
    """The labels of M predictions, in chunks over V.

    Shapes: (M, E), a head of V, (M, draws) uniform numbers in [0, 1), read where labels are sampled -> labels of M.
    Hidden states that float16 cannot hold (beyond 65,504) are kept as they are. Raises ValueError where the numbers of
    predictions differ, NotFiniteError for a teacher whose states are no numbers.
    """
    if len(uniform_MN) != len(hidden_ME):
        raise ValueError(f"there are {len(uniform_MN)} rows of random numbers for {len(hidden_ME)} predictions")
    if not hidden_ME.isfinite().all():
        raise NotFiniteError("the teacher's final states are not finite numbers\nlook at its weights and its dtype")
    if settings.kind == "hidden":
        kept_ME = hidden_ME.half()
        return HiddenLabels(kept_ME if kept_ME.isfinite().all() else hidden_ME, head)
    num_kept = min(settings.top_k if settings.kind == "topk" else settings.draws, len(head))
    ids_MK = torch.zeros((len(hidden_ME), num_kept), dtype=torch.int32, device=hidden_ME.device)
    value_MK = full_precision(hidden_ME.new_zeros((len(hidden_ME), num_kept)))
    for rows in chunk_rows(len(hidden_ME), len(head), hidden_ME.device):
        log_p_CV = F.log_softmax(full_precision(head.logits(hidden_ME[rows])), dim=1)
        if settings.kind == "topk":
            value_MK[rows], ids_MK[rows] = _best(log_p_CV, num_kept)
        else:
            value_MK[rows], ids_MK[rows] = _drawn(exp_(log_p_CV), uniform_MN[rows, :num_kept])
    if settings.kind == "topk":
        return (BucketLabels if settings.tail == "bucket" else TopKLabels)(ids_MK, value_MK.half())
    return SampledLabels(ids_MK, value_MK.to(torch.uint8))


def asked_labels(
    model: RemoteModel, memory: Any, tokens_BT: Tensor, mask_BT: Tensor, top_k: int, tail: Tail
) -> TopKLabels:
    """The labels of kind topk of every real token of given outputs, by a teacher behind a server, in its precision.

    Shapes: a `RemoteMemory` of B prompts, (B, T) tokens, (B, T) mask -> labels of M, on the tokens' device.
    """
    told = model.likeliest(memory.prompts, ragged(tokens_BT, mask_BT), top_k)
    parts = [each.ids_TK for each in told], [each.log_prob_TK for each in told]
    ids_MK, log_prob_MK = (torch.cat(part).to(tokens_BT.device) for part in parts)
    return (BucketLabels if tail == "bucket" else TopKLabels)(ids_MK, log_prob_MK)


def _best(log_p_CV: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    best_CK, ids_CK = log_p_CV.topk(num_kept, dim=1)
    return best_CK, ids_CK.int()


def _drawn(p_CV: Tensor, uniform_CN: Tensor) -> tuple[Tensor, Tensor]:
    """Counts and ids of independent draws by inversion: each distinct token once, the rest padded with count 0."""
    cumulative_CV = p_CV.cumsum(dim=1)
    threshold_CN = uniform_CN.to(cumulative_CV) * cumulative_CV[:, -1:]
    drawn_CN, _ = first_above(p_CV, cumulative_CV, threshold_CN)
    sorted_CN = drawn_CN.sort(dim=1).values
    first_CN = torch.ones_like(sorted_CN, dtype=torch.bool)
    first_CN[:, 1:] = sorted_CN[:, 1:] != sorted_CN[:, :-1]
    place_CN = first_CN.cumsum(dim=1) - 1  # of each draw among the distinct tokens
    count_CN = torch.zeros_like(p_CV[:, : sorted_CN.shape[1]]).scatter_add_(
        1, place_CN, torch.ones_like(sorted_CN, dtype=p_CV.dtype)
    )
    ids_CN = torch.zeros_like(sorted_CN).scatter_(1, place_CN, sorted_CN)
    return count_CN, ids_CN.int()


@dataclass(frozen=True)
class LabelError:
    """What labels say wrongly of the dense distribution, means over predictions; what they leave open is not wrong."""

    divergence: float  # KL(labels || p), nats: defined for sampled labels too, which give most tokens no mass
    missed: float  # total variation: how much of the mass is elsewhere


@torch.no_grad()
def label_error(labels: TeacherLabels, hidden_ME: Tensor, head: Head) -> LabelError:
    """Labels against softmax(logits). Shapes: labels of M, (M, E), a head of V -> means over M."""
    divergence = missed = 0.0
    for rows in chunk_rows(len(hidden_ME), len(head), hidden_ME.device):
        log_p_CV = F.log_softmax(full_precision(head.logits(hidden_ME[rows])), dim=1)
        kept_CV = full_precision(labels.probabilities(rows, log_p_CV))
        divergence += float((torch.xlogy(kept_CV, kept_CV) - kept_CV * log_p_CV).sum())
        missed += float((kept_CV - exp(log_p_CV)).abs().sum()) / 2
    return LabelError(divergence / len(hidden_ME), missed / len(hidden_ME))


@dataclass(frozen=True)
class OutputLabels:
    """Labels of every token of some outputs, one output after another."""

    labels: TeacherLabels
    start_R: Tensor  # (R,) where each output's begin

    def of(self, rows_B: Tensor, lengths_B: Tensor, device: torch.device | None = None) -> TeacherLabels:
        """Those of the first tokens of some outputs. Shapes: (B,) outputs, (B,) how many of each -> labels of M."""
        return self.labels.of(token_places(self.start_R[rows_B], lengths_B), device)


def token_places(start_B: Tensor, length_B: Tensor) -> Tensor:
    """Where the first tokens of some rows stand among all. Shapes: (B,) starts, (B,) how many of each -> (M,)."""
    before_B = length_B.cumsum(0) - length_B
    return (start_B - before_B).repeat_interleave(length_B) + torch.arange(int(length_B.sum()))
