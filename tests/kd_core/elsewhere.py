"""A remote model for tests: the stock model's full log-softmax in its own precision, nothing of the code under test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kd_core.models.backends.remote import Likeliest, RemoteConfig, RemoteModel, Scored, Writing, Written


class Elsewhere(RemoteModel):
    """Answers from a stock causal model of transformers."""

    def __init__(self, model: Any, end: int) -> None:
        self.model, self.dtype = model, model.dtype
        self.config = RemoteConfig(eos_token_id=end, pad_token_id=end)

    @torch.no_grad()
    def _log_probs(self, ids: Sequence[int]) -> torch.Tensor:
        log_probs: torch.Tensor = self.model(torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(1)
        return log_probs

    def score(self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Scored]:
        found = []
        for prompt, target in zip(prompts, targets, strict=True):
            log_p = self._log_probs([*prompt, *target])[len(prompt) - 1 :]
            own = [float(log_p[t, token]) for t, token in enumerate(target)]
            found.append(Scored(own, log_p.amax(1).tolist()))
        return found

    def likeliest(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], top_k: int
    ) -> list[Likeliest]:
        found = []
        for prompt, target in zip(prompts, targets, strict=True):
            best, ids = self._log_probs([*prompt, *target])[len(prompt) - 1 : -1].topk(top_k, dim=1)
            found.append(Likeliest(ids.int(), best))
        return found

    def write(self, prompts: Sequence[Sequence[int]], how: Writing) -> list[Written]:
        raise NotImplementedError
