"""Pruned models against the model that they were cut from, its other layers skipped; which layers are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from kd_core.models.loading import load_model
from kd_core.models.policy import backend_of
from kd_core.models.pruning import Choice, block_influence, kept_layers, num_layers, pruned
from tests.kd_core.models.backends.families import FAMILIES, ragged, stock_logits, tiny

TOTAL = 4
PROMPT, RESPONSE = (ids[0] for ids, _ in (ragged((7,), 0), ragged((6,), 1)))


def layers_of(model: Any) -> Sequence[Any]:
    """The decoder's layers, by the names that the families give them."""
    decoder = model.get_decoder()
    return next(found for name in ("layers", "h", "block") if (found := getattr(decoder, name, None)) is not None)


@contextmanager
def skipping(model: Any, kept: Sequence[int]) -> Iterator[None]:
    """All other layers pass on what they are given, and whatever else they return."""

    def skip(_: Any, arguments: Any, named: Any, output: Any) -> Any:
        read = arguments[0] if arguments else named["hidden_states"]
        return read if isinstance(output, Tensor) else (read, *output[1:])

    left_out = [layer for number, layer in enumerate(layers_of(model)) if number not in kept]
    handles = [layer.register_forward_hook(skip, with_kwargs=True) for layer in left_out]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kept", [(1, 3), (0, 2, 3), (2,)])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_pruned_model_is_the_model_with_its_other_layers_skipped(
    name: str, kept: tuple[int, ...], tmp_path: Path
) -> None:
    whole = tiny(name, TOTAL)
    small = pruned(whole, kept)
    with skipping(whole, kept):
        expected = stock_logits(whole, PROMPT, RESPONSE)
    torch.testing.assert_close(stock_logits(small, PROMPT, RESPONSE), expected, rtol=0, atol=10 * FAMILIES[name].within)
    assert num_layers(small.config.to_dict())[1] == len(layers_of(small)) == len(kept)
    assert len(layers_of(whole)) == TOTAL
    assert backend_of(small).name == FAMILIES[name].backend
    written = [
        small.generate(PROMPT[None], max_new_tokens=5, do_sample=False, use_cache=cached) for cached in (True, False)
    ]
    assert torch.equal(*written)  # each layer's keys at its own place in the cache
    small.float().save_pretrained(tmp_path)
    torch.testing.assert_close(*(stock_logits(each, PROMPT, RESPONSE) for each in (load_model(tmp_path), small)))


def test_the_whole_encoder_stays() -> None:
    for name in ("t5", "bart"):
        whole = tiny(name, TOTAL)
        ours, theirs = (model.get_encoder().state_dict() for model in (pruned(whole, (1,)), whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_the_config_says_of_each_layer_goes_with_it() -> None:
    config = pruned(tiny("gemma2", TOTAL), (1, 2, 3)).config
    assert config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert pruned(tiny("smollm3", TOTAL), (0, 3)).config.no_rope_layers == [1, 0]
    config = pruned(tiny("gpt_neo", TOTAL), (1, 2)).config
    assert config.attention_layers == ["local", "global"]
    assert type(config).from_dict(config.to_dict()).attention_layers == ["local", "global"]


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = tiny("llama", TOTAL)
    count = model.config.num_hidden_layers
    try:
        model.config.num_hidden_layers = count + 1
        with pytest.raises(ValueError, match=r"^a llama cannot be pruned here: .* no list of 5 layers\nname a smaller"):
            pruned(model, (0,))
    finally:
        model.config.num_hidden_layers = count
    with pytest.raises(ValueError, match=r"^a mystery does not say how many layers it has.*\nname a smaller"):
        num_layers({"model_type": "mystery"})


def test_layers_that_fit_in_no_other_place_are_refused() -> None:
    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}
    config = AutoConfig.for_model("qwen2_moe", decoder_sparse_step=2, **(sizes | heads))  # every second one has experts
    model = AutoModelForCausalLM.from_config(config)
    assert len(pruned(model, (0, 1)).model.layers) == 2
    with pytest.raises(ValueError, match=r"^a qwen2_moe cannot be pruned here: .* does not fit\nname a smaller model"):
        pruned(model, (1, 2))


def test_influence_is_one_minus_the_mean_cosine_over_all_tokens() -> None:
    model = tiny("llama", TOTAL)
    rows = [ragged((length,), length)[0] for length in (3, 8)]
    states = [model(row, output_hidden_states=True, use_cache=False).hidden_states for row in rows]
    found = block_influence(model, [{"input_ids": row} for row in rows])
    for number in range(TOTAL - 1):  # of the last one, transformers returns what the final norm has made of it
        cosines = []
        for each in states:
            for read, written in zip(each[number][0].tolist(), each[number + 1][0].tolist(), strict=True):
                products = sum(x * y for x, y in zip(read, written, strict=True))
                lengths = [sum(x * x for x in state) ** 0.5 for state in (read, written)]
                cosines.append(products / (lengths[0] * lengths[1]))
        assert len(cosines) == 11
        assert found[number] == pytest.approx(1 - sum(cosines) / 11, abs=1e-12)
    with skipping(model, (0, 1, 3)):
        assert block_influence(model, [{"input_ids": rows[0]}])[2] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_influence_is_measured_in_every_family(name: str) -> None:
    model = tiny(name, TOTAL)
    row = {"input_ids": PROMPT[None]}
    if model.config.is_encoder_decoder:
        row |= {"decoder_input_ids": RESPONSE[None]}
    found = block_influence(model, [row])
    assert len(found) == TOTAL
    assert all(0 < each < 2 for each in found)


def test_which_layers_are_kept() -> None:
    # 12 to 6 and 12 to 3 as Shleifer and Rush have them
    assert kept_layers(6, "even", 12) == (0, 2, 4, 7, 9, 11)
    assert kept_layers(3, "even", 12) == (0, 6, 11)
    assert kept_layers(1, "even", 12) == (0,)
    assert kept_layers(20, "middle", 30) == (*range(10), *range(20, 30))
    assert kept_layers(3, "middle", 6) == (0, 1, 5)
    assert kept_layers(2, "influence", 4, [0.3, 0.1, 0.2, 0.4]) == (0, 3)
    assert kept_layers(2, "influence", 4, [0.1, 0.2, 0.1, 0.1]) == (0, 1)  # of equal ones the earlier
    assert kept_layers((1, 2, 5), "even", 6) == (1, 2, 5)


@given(st.data(), st.integers(1, 60), st.sampled_from(get_args(Choice)))
def test_as_many_are_kept_as_asked_for_and_in_their_order(data: st.DataObject, total: int, choose: Choice) -> None:
    layers = data.draw(st.integers(1, total))
    influence = data.draw(st.lists(st.floats(0, 2), min_size=total, max_size=total))
    kept = kept_layers(layers, choose, total, influence)
    assert len(kept) == layers
    assert list(kept) == sorted(set(kept))
    assert set(kept) <= set(range(total))
    if choose != "influence" and layers > 1:
        assert (kept[0], kept[-1]) == (0, total - 1)


@pytest.mark.parametrize(("layers", "what"), [(7, "asks for 7"), ((0, 6), "names layer 6")])
def test_layers_that_do_not_exist_are_refused_in_two_lines(layers: int | tuple[int, ...], what: str) -> None:
    said = re.escape(f"student.layers {what}, and the teacher has 6 layers, 0 to 5\nset student.layers within these")
    with pytest.raises(ValueError, match=f"^{said}$"):
        kept_layers(layers, "even", 6)
