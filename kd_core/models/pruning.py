"""Students made of some of their teacher's layers: which ones are kept, and the model that they make.

"Shrink and fine-tune" (Shleifer and Rush 2020): decoder-only models keep some of their layers, encoder–decoders the
whole encoder and some of the decoder's. Which: named; evenly spread, with the first and the last (theirs); all but the
middle; or all but those of least block influence (ShortGPT: Men et al. 2024).

Shape legend: T tokens, D model width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_core.models.loading import quiet

Model = Any  # transformers ships no types
Choice = Literal["even", "middle", "influence"]
Layers = int | tuple[int, ...]  # how many, or which ones, ascending
COUNTS = {  # what configs call the number of layers; of an encoder–decoder, that of the decoder's
    True: ("num_decoder_layers", "decoder_layers", "num_layers"),
    False: ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
}
SMALLER = "name a smaller model of the same family as the student"


def kept_layers(layers: Layers, choose: Choice, total: int, influence: Sequence[float] = ()) -> tuple[int, ...]:
    """Which of `total` layers stay, ascending. influence: of each layer, where it decides.

    Raises ValueError as `check_layers` does.
    """
    check_layers(layers, total)
    if not isinstance(layers, int):
        return layers
    if choose == "even":
        last = max(layers - 1, 1)
        return tuple((place * (total - 1) + last // 2) // last for place in range(layers))  # halves are rounded up
    if choose == "middle":
        first = (layers + 1) // 2
        return (*range(first), *range(total - layers + first, total))
    ranked = sorted(range(total), key=lambda number: (-influence[number], number))
    return tuple(sorted(ranked[:layers]))


def check_layers(layers: Layers, total: int) -> None:
    """Raise ValueError, in two lines, for layers that do not exist."""
    asked = layers if isinstance(layers, int) else max(layers) + 1
    if asked > total:
        what = f"asks for {layers}" if isinstance(layers, int) else f"names layer {max(layers)}"
        raise ValueError(
            f"student.layers {what}, and the teacher has {total} layers, 0 to {total - 1}\n"
            "set student.layers within these"
        )


def num_layers(config: Mapping[str, Any]) -> tuple[str, int]:
    """The number of layers to choose from that a config.json states, and what it calls it.

    Raises ValueError, in two lines, for one that states none.
    """
    for name in COUNTS[bool(config.get("is_encoder_decoder"))]:
        if isinstance(config.get(name), int):
            return name, config[name]
    what = f"a {config.get('model_type')} does not say how many layers it has, and cannot be pruned"
    raise ValueError(f"{what}\n{SMALLER}")


def pruned(model: Model, kept: Sequence[int]) -> Model:
    """A new model of these layers of the (decoder of the) model, and of all the rest.

    It is built from its own config, so that every layer counts itself anew. Raises ValueError, in two lines, for a
    model whose other layers cannot make one.
    """
    name, total = num_layers(model.config.to_dict())
    prefix, _ = _layers(model, total)
    whole, first = model.state_dict(), f"{prefix}.0."
    weights = {key: tensor for key, tensor in whole.items() if not key.startswith(f"{prefix}.")}
    # T5's first block has the relative bias of all blocks, whichever comes first now
    weights |= {key: t for key, t in whole.items() if key.startswith(first) and "relative_attention_bias" in key}
    for new, old in enumerate(kept):
        was, becomes = f"{prefix}.{old}.", f"{prefix}.{new}."
        weights |= {becomes + key.removeprefix(was): tensor for key, tensor in whole.items() if key.startswith(was)}
    config = _pruned_config(model.config, name, total, kept)
    try:
        with quiet():
            small, found = type(model).from_pretrained(
                None, config=config, state_dict=weights, dtype=model.dtype, output_loading_info=True
            )
    except Exception as error:  # of a config that has lost its sense
        raise ValueError(_refusal(model, (str(error) or type(error).__name__).splitlines()[0])) from error
    odd = [*found["missing_keys"], *found["unexpected_keys"], *(str(each) for each in found["mismatched_keys"])]
    if odd:
        raise ValueError(_refusal(model, f"{min(odd)} does not fit"))
    small.generation_config = deepcopy(model.generation_config)
    return small.eval().to(model.device)


@torch.no_grad()
def block_influence(model: Model, rows: Iterable[Mapping[str, Tensor]]) -> list[float]:
    """1 - the mean cosine of each layer's input and output, over all tokens of rows as the model's forward takes them.

    Between 0 (the layer changes nothing but lengths) and 2. Source: ShortGPT, Eq. 1.
    """
    total = num_layers(model.config.to_dict())[1]
    _, layers = _layers(model, total)
    cosine, tokens = [0.0] * total, [0] * total

    def look(number: int, read_1TD: Tensor, written_1TD: Tensor) -> None:
        cosines_1T = torch.cosine_similarity(read_1TD.double(), written_1TD.double(), dim=-1)
        cosine[number] += float(cosines_1T.sum())
        tokens[number] += cosines_1T.numel()

    with _watched(layers, look):
        for row in rows:
            model(**row, use_cache=False)
    return [1 - cosine[number] / tokens[number] for number in range(total)]


@contextmanager
def _watched(layers: nn.ModuleList, look: Any) -> Iterator[None]:
    """`look` at every layer's number, input and output while the model runs."""

    def hook(number: int) -> Any:
        def watch(_: Any, arguments: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            read = arguments[0] if arguments else named["hidden_states"]
            look(number, read, output if isinstance(output, Tensor) else output[0])

        return watch

    handles = [layer.register_forward_hook(hook(number), with_kwargs=True) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: Model, total: int) -> tuple[str, nn.ModuleList]:
    """The list of the (decoder's) layers, and its name in the model. Raises ValueError where there is no such list."""
    inside = {id(module) for module in model.get_decoder().modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and id(module) in inside and len(module) == total:
            return name, module
    raise ValueError(_refusal(model, f"it keeps no list of {total} layers"))


def _pruned_config(config: Any, name: str, total: int, kept: Sequence[int]) -> Any:
    """The config with the number of layers that are kept, and of its lists by layer these entries."""
    new = deepcopy(config)
    setattr(new, name, len(kept))
    for key, value in config.to_dict().items():
        if "layer" in key and isinstance(value, list) and len(value) == total:  # layer_types, no_rope_layers, …
            setattr(new, key, [value[number] for number in kept])
    if hasattr(new, "attention_types"):  # GPT-Neo has its list in two forms
        new.attention_types = [[[kind], 1] for kind in new.attention_layers]
    return new


def _refusal(model: Model, reason: str) -> str:
    return f"a {model.config.model_type} cannot be pruned here: {reason}\n{SMALLER}"
