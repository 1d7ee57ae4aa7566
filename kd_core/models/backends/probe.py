"""Whether a backend serves a model as it is: a few tokens by the backend, and by the stock model alone.

Families differ in what they hand to attention, in how they count positions and in what they do to logits, and the next
one will differ in something else. So no list of names is believed: what a backend and the head make of two short rows
is compared to the stock logits, step by step and all at once, before the model is used. [ours]
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd_core.losses.head import Head
from kd_core.models.backends.graphs import out_of_graphs
from kd_core.models.packing import Layout

Model = Any  # transformers ships no types
PROMPTS, RESPONSES = (5, 1), (2, 4)  # tokens of each row: uneven, and a prompt without anything before its last token
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1  # of the mean size of a logit: far above rounding, far below a wrong mask


@dataclass(frozen=True)
class Backend:
    """One way to run a model; `policy` chooses."""

    name: str
    encode: Callable[[Model, Tensor, Tensor], Any]
    decode: Callable[[Model, Any, Tensor, Tensor], tuple[Tensor, Layout]]
    step_decoder: Callable[[Model, Any, int, int], Any]


@dataclass(frozen=True)
class Logits:
    """What a model does to its head's products; see `Head`."""

    scale: float = 1.0
    softcap: float | None = None


@torch.no_grad()
def probe(model: Model, backend: Backend) -> Logits:
    """What stands between the head's products and the logits, of a model that this backend serves.

    Raises ValueError saying what differs where it does not. In the precision of the weights; the model's modes, its
    config and the random numbers are left as they were.
    """
    with probing(model):
        return _compare(model, backend)


@contextmanager
def probing(model: Model) -> Iterator[None]:
    """Try a model out, in evaluation mode and its own precision, without graphs.

    Raises ValueError in a line for what it cannot do. No memory for it, and no graph of it, say nothing about a model.
    """
    with _evaluating(model), out_of_graphs(model), torch.autocast(model.device.type, enabled=False):
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
            raise ValueError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _compare(model: Model, backend: Backend) -> Logits:
    head = bare_head(model)
    prompts, responses = (some_rows(lengths, len(head), head.weight_VD.device) for lengths in (PROMPTS, RESPONSES))
    memory = backend.encode(model, *prompts)
    first_B1 = prompts[0].gather(1, prompts[1].sum(dim=1, keepdim=True) - 1)
    inputs_BT = torch.cat([first_B1, responses[0][:, :-1]], dim=1)
    hidden_MD, layout = backend.decode(model, memory, inputs_BT, responses[1])
    logits = _fitting(model, head, hidden_MD, layout.pack(_stock_logits(model, prompts, inputs_BT)))
    if logits is None:
        raise ValueError("its logits differ from those of its own forward pass")
    steps = backend.step_decoder(model, memory, inputs_BT.shape[1], 1)
    stepped = torch.stack([steps.step(token_B) for token_B in inputs_BT.unbind(dim=1)], dim=1)
    if not close(head.logits(layout.pack(stepped)), head.logits(hidden_MD)):
        raise ValueError("written a token at a time, its logits differ")
    return logits


def bare_head(model: Model) -> Head:
    """The head's matrix and biases; nothing of what is done to its products. Raises ValueError without one."""
    module = model.get_output_embeddings()
    if module is None:
        raise ValueError("it has no head that makes logits")
    after_1V = getattr(model, "final_logits_bias", None)  # of BART and its kin
    bias_V = getattr(module, "bias", None)
    if after_1V is not None:
        bias_V = after_1V[0] if bias_V is None else bias_V + after_1V[0]
    return Head(module.weight, bias_V)


def some_rows(lengths: tuple[int, ...], vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Some words: special tokens stand at the ends of a vocabulary."""
    place_BT = torch.arange(len(lengths) * max(lengths), device=device).view(len(lengths), -1)
    ids_BT = (vocab_size // 3 + 7 * place_BT + sum(lengths)) % (vocab_size * 2 // 3) + vocab_size // 6
    return ids_BT, place_BT % max(lengths) < torch.tensor(lengths, device=device)[:, None]


def _stock_logits(model: Model, prompts: tuple[Tensor, Tensor], inputs_BT: Tensor) -> Tensor:
    """Row by row, without padding. Shapes: (B, S) with mask, (B, T) -> (B, T, V)."""
    rows = []
    for ids_S, mask_S, inputs_T in zip(*prompts, inputs_BT, strict=True):
        prompt_1S = ids_S[mask_S][None]
        if model.config.is_encoder_decoder:
            ones, more = torch.ones_like(prompt_1S), {"decoder_input_ids": inputs_T[None]}
            rows.append(model(input_ids=prompt_1S, attention_mask=ones, use_cache=False, **more).logits[0])
        else:
            whole_1L = torch.cat([prompt_1S[:, :-1], inputs_T[None]], dim=1)
            out = model(input_ids=whole_1L, attention_mask=torch.ones_like(whole_1L), use_cache=False)
            rows.append(out.logits[0, prompt_1S.shape[1] - 1 :])
    return torch.stack(rows)


def _fitting(model: Model, head: Head, hidden_MD: Tensor, stock_MV: Tensor) -> Logits | None:
    """What the config says is done to logits, in the form in which it is true; None: in none."""
    config = model.get_decoder().config
    scales = [1.0]
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value not in (0, 1):
            scales += [float(value), 1 / value]  # some multiply by it, and some divide
    if getattr(config, "d_model", None):
        scales.append(config.d_model**-0.5)  # the T5 family's, with a tied head
    softcaps = [getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap")]
    for softcap in [x for x in softcaps if x is not None] or [None]:
        for scale in scales:
            if close(Head(head.weight_VD, head.bias_V, scale, softcap).logits(hidden_MD), stock_MV):
                return Logits(scale, softcap)
    return None


def close(ours_MV: Tensor, stock_MV: Tensor) -> bool:
    """Whether all is finite and differs little, on the mean: half precision rounds single numbers far."""
    tolerance = TOLERANCE if stock_MV.dtype in (torch.float32, torch.float64) else HALF_TOLERANCE
    stock_MV = stock_MV.double()
    size = (stock_MV - stock_MV.mean(dim=1, keepdim=True)).abs().mean()
    return bool((ours_MV.double() - stock_MV).abs().mean() <= tolerance * size)


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Every module in evaluation mode, and back in its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
