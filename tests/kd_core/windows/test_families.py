"""Windows of any family: a frozen trunk and a last block end in the stock model's logits and gradients, row by row."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from kd_core.losses.lm_head import weighted_nll
from kd_core.models.policy import head_of
from kd_core.train.state import OptimizerSettings, TrainState
from kd_core.windows.cutting import contexts, followers, window_targets
from kd_core.windows.last_block import last_hidden, next_hidden, set_trainable, trunk
from kd_core.windows.train import Windows, WindowTrainingSettings, train_windows, window_loss
from tests.kd_core.models.backends.families import FAMILIES, GROUPED, VOCABULARY, tiny

ENCODER_DECODERS = {"bart", "pegasus", "marian", "mbart", "t5", "mt5", "umt5"}
NAMES = [name for name in FAMILIES if name not in ENCODER_DECODERS]
FINAL_NORM = {
    "phi": "model.final_layernorm",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
    **dict.fromkeys(("gpt2", "gpt_neo", "falcon", "bloom", "gptj"), "transformer.ln_f"),
}
B, L = 5, 12  # longer than any of the tiny models' windows
TEXT = torch.randint(3, VOCABULARY, (70,), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A family; its model is for all tests, and left as it was."""
    yield request.param
    tiny(request.param).requires_grad_(True)


def rows() -> Tensor:
    return torch.randint(3, VOCABULARY, (B, L), generator=torch.Generator().manual_seed(0))


def of_stock(model: Any, predictions: int) -> Tensor:
    """(B*P, V), each row by itself."""
    ones = torch.ones((1, L), dtype=torch.long)
    return torch.cat([model(ids[None], attention_mask=ones).logits[0, -predictions:] for ids in rows()])


@pytest.mark.parametrize("predictions", [1, 4, L], ids=["exact", "packed", "without context"])
def test_logits_and_gradients_are_the_stock_models(name: str, predictions: int) -> None:
    model, within = tiny(name), FAMILIES[name].within
    trained = set_trainable(model, "last_block")
    rng = torch.Generator().manual_seed(1)
    target = torch.randint(3, VOCABULARY, (B * predictions,), generator=rng)
    weight = torch.randn(B * predictions, generator=rng).to(FAMILIES[name].dtype)
    below = trunk(model, rows(), predictions)
    assert not below.behind_BXD.requires_grad
    hidden = last_hidden(model, below)
    ours = weighted_nll(hidden, head_of(model), target, weight)
    stock_logits = of_stock(model, predictions)
    with torch.no_grad():
        logits = head_of(model).logits(hidden)
    torch.testing.assert_close(logits, stock_logits.detach(), atol=within, rtol=within)
    stock = -(weight * stock_logits.log_softmax(dim=1).gather(1, target[:, None]).squeeze(1)).sum()
    found = zip(*(torch.autograd.grad(each, trained) for each in (ours, stock)), strict=True)
    for a, b in found:
        torch.testing.assert_close(a, b, atol=10 * within, rtol=10 * within)
        assert b.abs().max() > 0 or b.ndim == 1  # a bias of keys leaves the softmax


def test_what_is_trained_is_the_last_block_and_the_final_norm(name: str) -> None:
    model = tiny(name)
    chosen = {id(parameter) for parameter in set_trainable(model, "last_block")}
    names = {each for each, parameter in model.named_parameters() if id(parameter) in chosen}
    last = model.config.num_hidden_layers - 1
    block = {each for each, _ in model.named_parameters() if f"layers.{last}." in each or f".h.{last}." in each}
    assert block < names
    assert {each.rpartition(".")[0] for each in names - block} == {FINAL_NORM.get(name, "model.norm")}
    assert len(set_trainable(model, "all")) == len(list(model.parameters()))


def test_where_all_is_trained_the_trunk_has_gradients_too(name: str) -> None:
    model, within = tiny(name), FAMILIES[name].within
    trained = set_trainable(model, "all")
    target = rows()[:, 0]
    weight = torch.ones(B, dtype=FAMILIES[name].dtype)
    ours = weighted_nll(next_hidden(model, rows()), head_of(model), target, weight)
    stock = -of_stock(model, 1).log_softmax(dim=1).gather(1, target[:, None]).sum()
    both = (torch.autograd.grad(each, trained, allow_unused=True) for each in (ours, stock))
    for a, b in zip(*both, strict=True):
        assert (a is None) == (b is None)
        torch.testing.assert_close(a, b, atol=20 * within, rtol=20 * within)


@pytest.mark.parametrize("predictions", [1, 4], ids=["exact", "packed"])
def test_a_trunk_in_bfloat16_is_near_float32s_and_as_the_last_block_takes_it(name: str, predictions: int) -> None:
    model = tiny(name).float()
    exact, rounded = (trunk(model, rows(), predictions, precision) for precision in ("float32", "bfloat16"))
    with torch.no_grad():
        pairs = [(exact.behind_BXD, rounded.behind_BXD), (exact.last_BPD, rounded.last_BPD)]
        pairs.append(tuple(head_of(model).logits(last_hidden(model, each)) for each in (exact, rounded)))
    for a, b in pairs:
        assert a.dtype == b.dtype == torch.float32
        apart = (a - b).abs().mean() / a.abs().mean()
        assert 1e-6 < apart < 0.02


def test_nothing_is_left_of_a_cut(name: str) -> None:
    model = tiny(name)
    before = model.config._attn_implementation
    with torch.no_grad():
        expected = of_stock(model, 1)
        next_hidden(model, rows())
        assert torch.equal(of_stock(model, 1), expected)
    assert model.config._attn_implementation == before
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def made(family: str, **sizes: Any) -> Any:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(GROUPED | special | sizes))).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("mode", ["exact", "packed"])
def test_a_round_of_training_leaves_the_frozen_part_as_it_was(mode: str) -> None:
    model, before = made("qwen2"), made("qwen2")
    set_trainable(model, "last_block")
    predictions = 5 if mode == "packed" else 1
    targets = window_targets(len(TEXT), 8, predictions, predictions)
    ids, true = contexts(TEXT, targets, 8, predictions), followers(TEXT, targets, predictions)
    windows = Windows(trunk(model, ids, predictions), true, None)
    settings = WindowTrainingSettings(
        alpha=1, epochs=3, patience=0, batch_rows=8, optimizer=OptimizerSettings(learning_rate=1e-2)
    )
    with torch.no_grad():
        logits = model(ids).logits[:, -predictions:].flatten(0, 1)
    first = float(torch.nn.functional.cross_entropy(logits, true.flatten()))
    assert window_loss(model, windows, 1.0)["nll"] == pytest.approx(first, abs=1e-5)
    log = list(train_windows(TrainState.start(model, settings.optimizer), [windows], windows, settings, seed=0))
    assert log[-1].values["validation_loss"] < first - 0.1
    for (each, a), b in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b) != each.startswith(("model.layers.1.", "model.norm.")), each


def test_a_model_of_one_block_has_nothing_frozen_but_its_embedding() -> None:
    model = made("llama", num_hidden_layers=1)
    below = trunk(model, rows())
    assert torch.equal(below.last_BPD[:, 0], model.model.embed_tokens(rows()[:, -1]))
    with torch.no_grad():
        torch.testing.assert_close(head_of(model).logits(last_hidden(model, below)), of_stock(model, 1))


def test_bfloat16_under_autocast_is_near_the_weights_own_precision() -> None:
    model = made("llama")
    trained = set_trainable(model, "last_block")
    below = trunk(model, rows())
    with torch.autocast("cpu", torch.bfloat16):
        hidden = last_hidden(model, below)
    assert (hidden - last_hidden(model, below)).abs().mean() < 0.02
    assert all(each.isfinite().all() for each in torch.autograd.grad(hidden.float().sum(), trained))


def test_a_last_block_that_reads_more_than_the_one_below_it_writes_is_refused() -> None:
    # Gemma 4's own: its last layers take keys and values from layers below
    model = made("gemma4_text")
    with pytest.raises(
        ValueError, match=r"^a model of type 'gemma4_text' cannot be .* \(cut .* other states\)\ntake a"
    ):
        trunk(model, rows())
    with pytest.raises(ValueError, match="'gemma4_text' cannot be trained on windows"):
        set_trainable(model, "last_block")


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a model of type 'bart' cannot be .* \(it has an encoder\)\ntake a Llama"):
        trunk(tiny("bart"), rows())


def test_a_context_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="a context of 65 tokens is longer than the model's 64 positions"):
        next_hidden(made("llama"), torch.zeros((1, 65), dtype=torch.long))
