"""Weights laid out once for the many small products of decoding on a CPU.

oneDNN multiplies blocks of a weight that lie together. A stock product in half precision lays the weight out so at
every call, which for the few rows of a decoding step takes far longer than the product itself where the processor has
matrix units (AMX); in float32, PyTorch asks MKL instead, which at few rows is slower. A copy of the weights that is
laid out once, and lives as long as the rows are written, makes both fast: docs/benchmarks.md has the measurements. Its
products differ from the stock ones by rounding. On other devices, and in float64, nothing is done. [ours]
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kd_core.models.backends.sharded import is_part

Product = Callable[[Tensor], Tensor]
MIN_SIZE = 2**16  # numbers of a weight: below, a call of oneDNN costs more than the product


def prepacked_product(weight_VD: Tensor, bias_V: Tensor | None) -> Product | None:
    """`F.linear` by a copy of these weights, in autocast's precision where that is on, without a gradient.

    None where the stock product is as good. Shapes: (V, D), (V,) or None -> a function of (..., D) to (..., V).
    """
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else weight_VD.dtype
    if weight_VD.device.type != "cpu" or weight_VD.numel() < MIN_SIZE or not _known(dtype):
        return None
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight_VD.detach().to(dtype))
    bias = None if bias_V is None else bias_V.detach().to(dtype, copy=True)

    def product(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(dtype), blocks, bias, "none", [], "")
        return out

    return product


def _known(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def gelu_product(x: Tensor, layer: nn.Module) -> Tensor | None:
    """A linear layer's output and its GELU (tanh) in one pass, under a CPU's autocast to bfloat16, without a gradient.

    The stock operations write the layer's bias, its output and the GELU of that one after another. None where they are
    needed. Shapes: (..., D) -> (..., 4 D). Differs by one rounding less, that between the two.
    """
    recorded = torch.is_grad_enabled() and any(each.requires_grad for each in (x, layer.weight, layer.bias))
    rounded = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if recorded or not rounded or x.device.type != "cpu" or not _known(torch.bfloat16):
        return None
    low, weight, bias = (each.to(torch.bfloat16) for each in (x, layer.weight, layer.bias))
    out: Tensor = torch.ops.mkldnn._linear_pointwise(low, weight, bias, "gelu", [], "tanh")
    return out


def prepacked_layers(model: nn.Module) -> dict[nn.Module, Product]:
    """The products of a model's linear layers, of those that gain by it."""
    linear = [x for x in model.modules() if type(x) is nn.Linear and "forward" not in vars(x) and not is_part(x.weight)]
    products = ((layer, prepacked_product(layer.weight, layer.bias)) for layer in linear)
    return {layer: product for layer, product in products if product is not None}


@contextmanager
def standing_in(products: dict[nn.Module, Product]) -> Iterator[None]:
    """Within it, these layers multiply so; afterwards, by whatever their weights are then."""
    for layer, product in products.items():
        vars(layer)["forward"] = product
    try:
        yield
    finally:
        for layer in products:
            del vars(layer)["forward"]
