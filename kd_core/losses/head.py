"""The LM head as it is, and the gradients that go back through it.

Shape legend: M tokens, D model width, V vocabulary, C tokens of one chunk.

    logits = c tanh(z / c),   z = scale (x W' + b)

without tanh where there is no softcap c. Phi and GPT-J have a bias, BART and Marian one that is no parameter, Cohere
and Granite a scale, Gemma 2 a softcap; most heads are a matrix and nothing else, and their logits one product.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """What turns final hidden states into logits."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    product: Callable[[Tensor], Tensor] | None = None  # by these very weights, where there is a faster way; no gradient

    def __len__(self) -> int:
        """V."""
        return len(self.weight_VD)

    @property
    def is_linear(self) -> bool:
        """Whether the mean of the logits is the logit of the mean row."""
        return self.softcap is None

    def logits(self, hidden: Tensor) -> Tensor:
        """Shapes: (..., D) -> (..., V), in float32 or better where more than a product is to be done."""
        product = self.product(hidden) if self.product else F.linear(hidden, self.weight_VD, self.bias_V)
        if self.scale == 1 and self.softcap is None:
            return product
        z = full_precision(product) * self.scale
        return z if self.softcap is None else z.div_(self.softcap).tanh_().mul_(self.softcap)

    def mean_logit(self, hidden_MD: Tensor) -> Tensor:
        """The mean over V, of a linear head, at no pass over V. Shapes: (M, D) -> (M,), float32 or better."""
        dtype = full_precision(hidden_MD[:0]).dtype
        mean_M = full_precision(hidden_MD) @ self.weight_VD.mean(dim=0, dtype=dtype)
        if self.bias_V is not None:
            mean_M = mean_M + self.bias_V.mean(dtype=dtype)
        return mean_M if self.scale == 1 else mean_M * self.scale

    def first(self, num_tokens: int | None) -> "Head":
        """The logits of the first tokens alone; None: of all."""
        if num_tokens is None or num_tokens >= len(self):
            return self
        bias_V = None if self.bias_V is None else self.bias_V[:num_tokens]
        return replace(self, weight_VD=self.weight_VD[:num_tokens], bias_V=bias_V, product=None)

    def columns(self, start: int, stop: int) -> "Head":
        """The logits of some tokens in a row alone."""
        bias_V = None if self.bias_V is None else self.bias_V[start:stop]
        return replace(self, weight_VD=self.weight_VD[start:stop], bias_V=bias_V, product=None)

    def detach(self) -> "Head":
        """The same head, constant."""
        bias_V = None if self.bias_V is None else self.bias_V.detach()
        return replace(self, weight_VD=self.weight_VD.detach(), bias_V=bias_V)

    def copied_to(self, device: torch.device) -> "Head":
        """A constant head of its own, whatever becomes of the model that it was taken from."""
        bias_V = None if self.bias_V is None else self.bias_V.detach().clone().to(device)
        return replace(self, weight_VD=self.weight_VD.detach().clone().to(device), bias_V=bias_V)


def full_precision(x: Tensor) -> Tensor:
    """Half precision to float32; float64 stays, so that the equation tests can be exact."""
    return x if x.dtype == torch.float64 else x.float()


def dot(x_CV: Tensor, y_CV: Tensor) -> Tensor:
    """The sum over V of x y in their own precision: autocast would round both to bfloat16. Shapes: (C, V)s -> (C,)."""
    with torch.autocast(x_CV.device.type, enabled=False):
        sum_C: Tensor = torch.linalg.vecdot(x_CV, y_CV)
    return sum_C


class HeadGradients:
    """Logits of chunks, and the gradients of hidden states and head gathered from theirs: of what is wanted only.

    For a loss whose gradient is known in its forward pass: that pass gathers it, and backward only scales it.
    """

    def __init__(self, hidden_MD: Tensor, head: Head, wanted: tuple[bool, ...]) -> None:
        self.hidden_MD, self.head, self.wanted = hidden_MD, head, any(wanted)
        wants_hidden, wants_weight, wants_bias = wanted
        dtype = full_precision(hidden_MD[:0]).dtype
        weight_VD = head.weight_VD
        self.of_hidden_MD = torch.empty_like(hidden_MD) if wants_hidden else None
        self.of_weight_VD = weight_VD.new_zeros(weight_VD.shape, dtype=dtype) if wants_weight else None
        self.of_bias_V = weight_VD.new_zeros(len(head), dtype=dtype) if wants_bias else None
        self._slope_CV: Tensor | None = None

    def logits(self, rows: slice) -> Tensor:
        """(C, V) of some rows, float32 or better, to be written over; what `add` needs of them is kept."""
        logits_CV = full_precision(self.head.logits(self.hidden_MD[rows]))
        if self.wanted and self.head.softcap is not None:
            self._slope_CV = (logits_CV / self.head.softcap).square_().neg_().add_(1)  # 1 - tanh(z / c)^2
        return logits_CV

    def add(self, rows: slice, grad_CV: Tensor) -> None:
        """Take in the gradient of the logits of `rows`, the last that were asked for. Shapes: (C, V)."""
        if self._slope_CV is not None:
            grad_CV = grad_CV * self._slope_CV
        if self.head.scale != 1:
            grad_CV = grad_CV * self.head.scale
        low_CV = grad_CV.to(self.head.weight_VD.dtype)
        if self.of_hidden_MD is not None:
            self.of_hidden_MD[rows] = low_CV @ self.head.weight_VD
        if self.of_bias_V is not None:
            self.of_bias_V += grad_CV.sum(dim=0)
        if self.of_weight_VD is None:
            return
        if self.of_weight_VD.dtype == low_CV.dtype:
            self.of_weight_VD.addmm_(low_CV.T, self.hidden_MD[rows])  # no second (V, D) tensor
        else:
            self.of_weight_VD += low_CV.T @ self.hidden_MD[rows]

    def save(self, ctx: Any) -> None:
        """Keep them for `scaled`."""
        ctx.save_for_backward(self.of_hidden_MD, self.of_weight_VD, self.of_bias_V)
        ctx.weight_dtype = self.head.weight_VD.dtype

    @staticmethod
    def scaled(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """What backward returns for hidden states, weight and bias."""
        hidden_MD, weight_VD, bias_V = ctx.saved_tensors
        hidden = None if hidden_MD is None else hidden_MD * scale
        return hidden, *(None if x is None else (x * scale).to(ctx.weight_dtype) for x in (weight_VD, bias_V))
