"""Divergence training from stock parts: full (B, T, V) logits of both models, `F.kl_div`, autograd. The yardstick.

Written as the usual trainers do it, after TRL's published formula; nothing in it is slowed down.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def loss(
    student: Any,
    teacher: Any,
    source: Tensor,
    source_mask: Tensor,
    tokens: Tensor,
    mask: Tensor,
    kind: str,
    beta: float,
) -> Tensor:
    """Mean over real tokens of forward KL, reverse KL or JS between teacher and student at every position."""
    inputs = student._shift_right(tokens)
    given = {"input_ids": source, "attention_mask": source_mask.long(), "decoder_input_ids": inputs, "use_cache": False}
    log_q = F.log_softmax(student(**given).logits, dim=-1)
    with torch.no_grad():
        log_p = F.log_softmax(teacher(**given).logits, dim=-1)
    return (of_logits(log_p, log_q, kind, beta) * mask).sum() / mask.sum()


def of_logits(log_p: Tensor, log_q: Tensor, kind: str, beta: float) -> Tensor:
    """The same of given log-probabilities, position by position. Shapes: (..., V) twice -> (...)."""
    if kind == "forward_kl":
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    elif kind == "reverse_kl":
        divergence = F.kl_div(log_p, log_q, reduction="none", log_target=True)
    else:
        share = torch.tensor(beta, dtype=log_q.dtype)
        log_m = torch.logsumexp(torch.stack([log_q + torch.log1p(-share), log_p + torch.log(share)]), dim=0)
        of_teacher = F.kl_div(log_m, log_p, reduction="none", log_target=True)
        of_student = F.kl_div(log_m, log_q, reduction="none", log_target=True)
        divergence = share * of_teacher + (1 - share) * of_student
    return divergence.sum(-1)
