"""A whole update of LLMR and of GKD, by our loops and from stock parts: sample, judge, learn, step.

The student's weights are float32 under bfloat16 autocast, the teacher's are bfloat16.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.cases import BETA, Case, stock_logits, stock_sample
from benchmarks.reference_divergence import of_logits
from benchmarks.reference_llmr import token_mask
from kd_core.losses.head import full_precision
from kd_core.losses.rewards import RewardSettings
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import BatchSettings, Sources
from kd_core.train.divergence import GKDSettings, Transfer, train_divergence
from kd_core.train.llmr import LLMRSettings, train_llmr
from kd_core.train.state import OptimizerSettings, TrainState, autocast

OPTIMIZER = OptimizerSettings(learning_rate=1e-6, precision="bfloat16")
REWARD = RewardSettings(baseline="value", truncated="bootstrap")
Update = Callable[[], object]


def our_llmr_update(case: Case) -> Update:
    """The loop that `distill` runs. Nothing is dropped, so that all that was written counts."""
    settings = LLMRSettings(reward=REWARD, **_budget(case))
    sources = _sources(case)
    state = TrainState.start(_student(case), settings.optimizer)
    loop = train_llmr(state, case.teacher, sources, sources, settings, seed=0)
    next(loop)  # the look at the validation set before any update
    return lambda: next(loop)


def our_gkd_update(case: Case) -> Update:
    """The loop that `distill` runs, on the student's samples alone."""
    settings = GKDSettings(beta=BETA, student_share=1.0, **_budget(case))
    sources = _sources(case)
    state = TrainState.start(_student(case), settings.optimizer)
    loop = train_divergence(state, case.teacher, Transfer(sources, None), sources, settings, seed=0)
    next(loop)
    return lambda: next(loop)


def stock_llmr_update(case: Case) -> Update:
    """`generate`, all logits of both, autograd. The value after the last token of what was cut off is left out."""

    def loss(student: Any, written: Case) -> Tensor:
        target_M1 = written.tokens_BT[written.mask_BT][:, None]
        with torch.no_grad():
            logits_MV = full_precision(stock_logits(case.teacher, written))
            advantage_M = (logits_MV.gather(1, target_M1) - logits_MV.amax(dim=1, keepdim=True)).squeeze(1)
            step_BT = full_precision(torch.zeros_like(written.tokens_BT)).masked_scatter(written.mask_BT, advantage_M)
            gain_BT = (step_BT.flip(1).cumsum(1).flip(1) / REWARD.reward_scale).clamp(-1, 1)
        log_q_MV = F.log_softmax(full_precision(stock_logits(student, written)), dim=-1)
        return -(gain_BT[written.mask_BT] * log_q_MV.gather(1, target_M1).squeeze(1)).mean()

    return _stock(case, loss)


def stock_gkd_update(case: Case) -> Update:
    """`generate`, all logits of both, autograd."""

    def loss(student: Any, written: Case) -> Tensor:
        with torch.no_grad():
            log_p_MV = F.log_softmax(full_precision(stock_logits(case.teacher, written)), dim=-1)
        log_q_MV = F.log_softmax(full_precision(stock_logits(student, written)), dim=-1)
        return of_logits(log_p_MV, log_q_MV, "js", BETA).mean()

    return _stock(case, loss)


def _stock(case: Case, loss: Callable[[Any, Case], Tensor]) -> Update:
    student = _student(case)
    optimizer = torch.optim.Adam(student.parameters(), lr=OPTIMIZER.learning_rate, fused=True)

    def update() -> float:
        with autocast(student.device, OPTIMIZER.precision):
            tokens = stock_sample(case, student)
            written = replace(case, tokens_BT=tokens, mask_BT=token_mask(tokens, student.config.eos_token_id))
            objective = loss(student, written)
        objective.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), OPTIMIZER.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(objective.detach())

    return update


def _student(case: Case) -> Any:
    return copy.deepcopy(case.student).float()


def _budget(case: Case) -> dict[str, Any]:
    rows = len(case.prompt_BS)
    return {
        "steps": 10**6,
        "validate_every": 0,
        "validation_rows": 1,
        "sampling": SamplingSettings(max_new_tokens=case.tokens_BT.shape[1]),
        "batch": BatchSettings(micro_batch_rows=rows, micro_batch_tokens=10**6, micro_batches=1),
        "optimizer": OPTIMIZER,
    }


def _sources(case: Case) -> Sources:
    pairs = zip(case.prompt_BS.cpu(), case.prompt_mask_BS.cpu(), strict=True)
    rows = TokenRows.of([ids_S[mask_S].tolist() for ids_S, mask_S in pairs])
    return Sources(rows, rows)
