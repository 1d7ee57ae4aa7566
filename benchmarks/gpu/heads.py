"""The head alone: the fused divergence at the size that Liger publishes, the bare product beside it, memory over V*T.

Shape legend: M tokens, D width of both models, V vocabulary.

Liger's figures are of its own kernel on one H100: JS at beta 0.5, forward and backward, M = 8,192, D = 4,096,
V = 128,256, bfloat16: 60.7 ms, 11.1 GB; plain PyTorch 213 ms, 68.9 GB. The gradients are those of the student's states
and of its head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.cases import BETA
from benchmarks.gpu.measuring import Machine, Pass, there
from benchmarks.reference_divergence import of_logits
from kd_core.losses.divergence_head import Divergence, TeacherStates, divergence_loss
from kd_core.losses.head import Head, full_precision
from kd_core.losses.lm_head import token_scores, weighted_nll


@dataclass(frozen=True)
class Size:
    """Tokens, width, vocabulary."""

    tokens: int
    width: int
    vocabulary: int


@dataclass(frozen=True)
class Heads:
    """Final states and heads of student and teacher; the student's have gradients."""

    hidden_MD: Tensor
    weight_VD: Tensor
    teacher_hidden_MD: Tensor
    teacher_weight_VD: Tensor

    @classmethod
    def of(cls, size: Size, device: torch.device, dtype: torch.dtype) -> "Heads":
        """Random; logits vary by about 1."""
        torch.manual_seed(0)

        def random(rows: int, scale: float) -> Tensor:
            return torch.randn(rows, size.width, device=device, dtype=dtype) * scale

        student = random(size.tokens, 1.0), random(size.vocabulary, size.width**-0.5)
        teacher = random(size.tokens, 1.0), random(size.vocabulary, size.width**-0.5)
        return cls(*(x.requires_grad_() for x in student), *teacher)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """In the student's states and head."""
        return list(torch.autograd.grad(loss, [self.hidden_MD, self.weight_VD]))

    def ours(self) -> list[Tensor]:
        """The mean JS's gradients, in chunks."""
        weight_M = torch.full((len(self.hidden_MD),), 1 / len(self.hidden_MD), device=self.hidden_MD.device)
        seen = TeacherStates(self.teacher_hidden_MD, Head(self.teacher_weight_VD))
        head, kind = Head(self.weight_VD), Divergence("js", BETA)
        return self.gradients(divergence_loss(self.hidden_MD, head, seen, weight_M, kind)[0])

    def plain(self) -> list[Tensor]:
        """The same from all logits."""
        pairs = (self.teacher_hidden_MD, self.teacher_weight_VD), (self.hidden_MD, self.weight_VD)
        log_p_MV, log_q_MV = (F.log_softmax(full_precision(F.linear(*pair)), dim=-1) for pair in pairs)
        return self.gradients(of_logits(log_p_MV, log_q_MV, "js", BETA).mean())

    def liger(self) -> list[Tensor]:
        """The same by Liger's kernel, which this machine may lack."""
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

        fused = LigerFusedLinearJSD(jsd_beta=BETA)
        return self.gradients(fused(self.hidden_MD, self.weight_VD, self.teacher_hidden_MD, self.teacher_weight_VD))

    def others(self) -> dict[str, Pass]:
        """By name, whatever `ours` is compared to here."""
        liger = {"Liger": self.liger} if find_spec("liger_kernel") is not None else {}
        return {"full logits": self.plain, **liger}

    def products(self) -> None:
        """The student's head alone, forward and backward, a chunk of tokens at a time so that it fits anywhere."""
        hidden_MD, weight_VD = self.hidden_MD.detach(), self.weight_VD.detach()
        gradient_VD = torch.zeros_like(weight_VD)
        for rows_CD in hidden_MD.split(2048):
            logits_CV = rows_CD @ weight_VD.T
            gradient_VD.addmm_(logits_CV.T, rows_CD)
            torch.mm(logits_CV, weight_VD)


def fused_divergence(machine: Machine, size: Size) -> Iterator[dict[str, Any]]:
    """Seconds of JS with its gradients, by us, by full logits, and by Liger where it is installed."""
    heads = Heads.of(size, machine.device, torch.bfloat16)
    ours, others = there(heads.ours), {name: there(other) for name, other in heads.others().items()}
    flops = 2.0 * size.tokens * size.width * size.vocabulary * 4  # the teacher's product once, the student's thrice
    yield from machine.compared("fused divergence", ours, others, tokens=size.tokens, flops=flops, **_shape(size))


def memory_of_divergence(machine: Machine, size: Size) -> Iterator[dict[str, Any]]:
    """Peak memory of the same."""
    heads = Heads.of(size, machine.device, torch.bfloat16)
    yield from machine.memory("memory of fused divergence", heads.ours, heads.others(), **_shape(size))


def _shape(size: Size) -> dict[str, Any]:
    return {"width": size.width, "vocabulary": size.vocabulary, "precision": "bfloat16"}


def bare_product(machine: Machine, size: Size) -> Iterator[dict[str, Any]]:
    """What no loss over this head can go below: our policy gradient against its products alone."""
    heads = Heads.of(size, machine.device, torch.bfloat16)
    target_M = torch.arange(size.tokens, device=machine.device) % size.vocabulary
    weight_M = torch.full((size.tokens,), 1 / size.tokens, device=machine.device)

    def ours() -> list[Tensor]:
        return heads.gradients(weighted_nll(heads.hidden_MD, Head(heads.weight_VD), target_M, weight_M))

    flops = 2.0 * size.tokens * size.width * size.vocabulary * 3
    others = {"the bare product, forward and backward": there(heads.products)}
    what = "policy gradient of a head"
    yield from machine.compared(what, there(ours), others, tokens=size.tokens, flops=flops, **_shape(size))


def memory(machine: Machine, size: Size) -> Iterator[dict[str, Any]]:
    """Peak memory of scoring and of the policy gradient, against all logits, of an eighth of the tokens and of all."""
    for tokens in (max(1, size.tokens // 8), size.tokens):
        part = Size(tokens, size.width, size.vocabulary)
        heads = Heads.of(part, machine.device, torch.bfloat16)
        target_M = torch.arange(tokens, device=machine.device) % size.vocabulary
        sizes = {"tokens": tokens, **_shape(size)}
        sizes["one_float32_of_all_logits_mib"] = round(tokens * size.vocabulary * 4 / 2**20)
        for what, (ours, plain) in _passes(heads, target_M).items():
            yield from machine.memory(f"memory of {what}", ours, {"full logits": plain}, **sizes)


def _passes(heads: Heads, target_M: Tensor) -> dict[str, tuple[Pass, Pass]]:
    hidden_MD, weight_VD = heads.hidden_MD, heads.weight_VD
    weight_M = torch.full(target_M.shape, 1 / len(target_M), device=target_M.device)

    @torch.no_grad()
    def plain_scores() -> object:
        logits_MV = F.linear(hidden_MD, weight_VD)
        return logits_MV.gather(1, target_M[:, None]), logits_MV.amax(dim=1), logits_MV.mean(dim=1)

    def plain_gradient() -> object:
        return heads.gradients(F.cross_entropy(full_precision(F.linear(hidden_MD, weight_VD)), target_M))

    return {
        "scoring": (lambda: token_scores(hidden_MD, Head(weight_VD), target_M, "max"), plain_scores),
        "policy gradient": (
            lambda: heads.gradients(weighted_nll(hidden_MD, Head(weight_VD), target_M, weight_M)),
            plain_gradient,
        ),
    }
