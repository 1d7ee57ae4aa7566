"""e^x of large tensors.

On a CPU it is 2^(x log2 e): PyTorch's exp2 is vectorised everywhere, its exp is MKL's, which took twice the time of
both steps on an AMD EPYC. They differ by the rounding of x log2 e: 2^-24 |x| log2 e in float32.
"""

import math

import torch
from torch import Tensor

LOG2_E = 1 / math.log(2)


def exp(x: Tensor) -> Tensor:
    """e^x, element by element."""
    return torch.mul(x, LOG2_E).exp2_() if x.device.type == "cpu" else x.exp()


def exp_(x: Tensor) -> Tensor:
    """The same in place."""
    return x.mul_(LOG2_E).exp2_() if x.device.type == "cpu" else x.exp_()


def exp_below(x_CV: Tensor, largest_C1: Tensor, out: Tensor | None = None) -> Tensor:
    """e^(x - largest), in as many passes as `exp`; `out` may be x itself. Shapes: (C, V), (C, 1) -> (C, V).

    On a CPU the exponent is exact to half a digit of the largest, as logits themselves are: up to 2^-23 |largest|.
    """
    if x_CV.device.type != "cpu":
        return torch.sub(x_CV, largest_C1, out=out).exp_()
    return torch.add(largest_C1 * -LOG2_E, x_CV, alpha=LOG2_E, out=out).exp2_()
