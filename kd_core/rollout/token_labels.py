"""Teacher labels of every target token: the k most probable next tokens and the mass of the rest.

Shape legend: B rows, T positions, M real tokens, V vocabulary, k labels a token.

The k log-probabilities are those of the full softmax, not renormalised: what is missing is stored as the tail's
log-probability, so a reader can see how biased the cut is. [ours]
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.losses.lm_head import chunk_rows
from kd_core.models.policy import Memory, Model, head_of, target_states


@dataclass(frozen=True)
class TokenLabels:
    """Labels of one row's T tokens: (T, k) ids and log-probabilities in nats, (T,) log-probability of all the rest."""

    ids_Tk: Tensor
    log_prob_Tk: Tensor
    tail_T: Tensor

    def rows(self) -> Iterator[dict[str, object]]:
        """One record a token, ready to be written."""
        # float16 halves the size; 1e-3 nats of rounding is far below what the cut at k costs
        log_probs = self.log_prob_Tk.half().cpu().numpy()
        for position, (ids, tail) in enumerate(zip(self.ids_Tk.tolist(), self.tail_T.tolist(), strict=True)):
            yield {"position": position, "token_ids": ids, "log_probs": log_probs[position], "tail_log_prob": tail}


@torch.no_grad()
def top_k_labels(
    model: Model, memory: Memory, tokens_BT: Tensor, mask_BT: Tensor, k: int, num_tokens: int | None = None
) -> list[TokenLabels]:
    """The teacher's k best next tokens at every real position of given outputs, in chunks over positions.

    Shapes: Memory, (B, T), (B, T) -> B times `TokenLabels`. A k above the vocabulary means the whole of it.
    """
    hidden_MD, _ = target_states(model, memory, tokens_BT, mask_BT)
    head = head_of(model, num_tokens)
    k = min(k, len(head))
    ids, log_probs, tails = [], [], []
    for rows in chunk_rows(hidden_MD.shape[0], len(head), hidden_MD.device):
        log_p_CV = F.log_softmax(head.logits(hidden_MD[rows]).float(), dim=1)
        best_Ck, id_Ck = log_p_CV.topk(k, dim=1)
        # summed over the rest, not 1 - sum: the difference would drown in rounding when the tail is small
        tails.append(log_p_CV.scatter(1, id_Ck, float("-inf")).logsumexp(dim=1))
        ids.append(id_Ck.int())
        log_probs.append(best_Ck)
    lengths = mask_BT.sum(dim=1).tolist()
    parts = (torch.cat(columns).split(lengths) for columns in (ids, log_probs, tails))
    return [TokenLabels(*row) for row in zip(*parts, strict=True)]
