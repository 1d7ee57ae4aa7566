"""Adapters: what they compute and learn is what stock transformers and peft do, on whatever runs the model."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from kd_core.losses.lm_head import weighted_nll
from kd_core.models.backends import lora
from kd_core.models.backends.lora import LoraSettings, add_adapter, base_of, load_adapter, merge, save_adapter, targeted
from kd_core.models.policy import backend_of, encode, head_of
from kd_core.rollout.beam_search import BeamSettings, beam_search
from kd_core.rollout.sampling import greedy
from tests.kd_core.models.backends.families import (
    FAMILIES,
    GROUPED,
    PROMPTS,
    RESPONSES,
    generated,
    ragged,
    states,
    stock_rows,
    tiny,
)
from tests.kd_core.models.backends.test_families import ending_in
from tests.kd_core.models.backends.test_probe import made

of_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # it asks transformers for it
SETTINGS = LoraSettings(rank=3, alpha=5.0)
SOME = ["llama", "gemma2", "phi3", "gpt2", "gpt_neox", "falcon", "bart", "gpt_neo", "t5", "mt5"]


def adapted(name: str, settings: LoraSettings = SETTINGS, seed: int = 0, *, trained: bool = True) -> Any:
    """A tiny model with an adapter, of which B is as if it had been trained."""
    model = tiny(name)
    add_adapter(model, settings, seed)
    if trained:
        generator = torch.Generator().manual_seed(1)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def own_peft(name: str, model: Any) -> Any:
    """The same model and adapter as a user of peft makes them."""
    config = LoraConfig(r=3, lora_alpha=5.0, target_modules="all-linear", fan_in_fan_out=name == "gpt2")
    theirs = get_peft_model(tiny(name), config)
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            parameter.copy_(ours[key.removeprefix("base_model.model.")])
    return theirs


def trained(model: Any) -> dict[str, Tensor]:
    return {key.removeprefix("base_model.model."): p for key, p in model.named_parameters() if p.requires_grad}


@of_peft
@pytest.mark.parametrize("name", SOME)
def test_logits_and_gradients_are_those_of_transformers_and_peft(name: str) -> None:
    model, family = adapted(name), FAMILIES[name]
    theirs = own_peft(name, model)
    prompts, responses = ragged(PROMPTS, 3), ragged(RESPONSES, 4)
    target = responses[0][responses[1]]
    weight = torch.randn(len(target), generator=torch.Generator().manual_seed(5)).to(family.dtype)
    hidden = states(model, prompts, responses)
    expected = stock_rows(theirs, prompts, responses)
    plain = stock_rows(tiny(name), prompts, responses)
    assert float((expected - plain).detach().abs().mean()) > 100 * family.within, "the adapter does nothing: not tested"
    torch.testing.assert_close(head_of(model).logits(hidden), expected, atol=family.within, rtol=family.within)
    ours = weighted_nll(hidden, head_of(model), target, weight)
    stock = -(weight * expected.log_softmax(dim=1).gather(1, target[:, None]).squeeze(1)).sum()
    assert trained(model).keys() == trained(theirs).keys()
    assert all("lora_" in key for key in trained(model))
    found = torch.autograd.grad(ours, list(trained(model).values()))
    wanted = torch.autograd.grad(stock, [trained(theirs)[key] for key in trained(model)])
    for key, mine, other in zip(trained(model), found, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=10 * family.within, rtol=10 * family.within, msg=key)
        assert mine.abs().max() > 1e-4, key


@pytest.mark.parametrize("name", SOME)
def test_what_is_written_is_what_generate_writes(name: str) -> None:
    model, base = adapted(name), tiny(name)
    prompts, beams = ragged(PROMPTS, 9), BeamSettings(num_beams=3, max_new_tokens=5, no_repeat_ngram_size=0)
    with torch.no_grad():
        end = int(greedy(model, encode(model, *prompts), 6).tokens_BT[2, 3])
        with ending_in(model, end), ending_in(base, end):
            ours, found = greedy(model, encode(model, *prompts), 6), beam_search(model, encode(model, *prompts), beams)
            without = greedy(base, encode(base, *prompts), 6)
            for row, (ids, there) in enumerate(zip(*prompts, strict=True)):
                assert ours.tokens_BT[row][ours.mask_BT[row]].tolist() == generated(model, ids[there], max_new_tokens=6)
                stock = generated(model, ids[there], max_new_tokens=5, num_beams=3, early_stopping=False)
                assert found.tokens_BT[row, : len(stock)].tolist() == stock
    assert ours.tokens_BT.tolist() != without.tokens_BT.tolist(), "the adapter does nothing: not tested"


def test_what_reads_weights_does_not_run_a_model_with_an_adapter_and_runs_it_again_without() -> None:
    model = tiny("t5")
    assert backend_of(model).name == "t5"
    add_adapter(model, SETTINGS, 0)
    assert backend_of(model).name == "padded"
    assert backend_of(base_of(model)).name == "t5"
    merge(model)
    assert backend_of(model).name == "t5"
    assert backend_of(adapted("llama")).name == "packed"


def test_a_student_starts_as_its_base_and_its_modes_are_left() -> None:
    model = adapted("llama", trained=False)
    prompts, responses = ragged(PROMPTS, 3), ragged(RESPONSES, 4)
    with torch.no_grad():
        assert torch.equal(*(states(each, prompts, responses) for each in (model, tiny("llama"))))
    assert not model.training


def test_the_base_takes_no_memory_and_knows_nothing_of_the_adapter() -> None:
    model = adapted("llama")
    base = base_of(model)
    theirs = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in base.parameters()} < theirs
    assert {key: p.shape for key, p in base.named_parameters()} == {
        key: p.shape for key, p in tiny("llama").named_parameters()
    }
    prompts, responses = ragged(PROMPTS, 3), ragged(RESPONSES, 4)
    with torch.no_grad():
        assert torch.equal(*(states(each, prompts, responses) for each in (base, tiny("llama"))))
        assert not torch.equal(*(states(each, prompts, responses) for each in (base, model)))


@pytest.mark.parametrize("name", SOME)
def test_merged_it_is_the_same_function(name: str) -> None:
    model, family = adapted(name), FAMILIES[name]
    prompts, responses = ragged(PROMPTS, 3), ragged(RESPONSES, 4)
    with torch.no_grad():
        before = stock_rows(model, prompts, responses)
        merge(model)
        after = stock_rows(model, prompts, responses)
    torch.testing.assert_close(after, before, atol=family.within, rtol=family.within)
    assert model.state_dict().keys() == tiny(name).state_dict().keys()


@of_peft
def test_saved_and_loaded_it_is_the_same_and_peft_loads_it(tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapted("llama", LoraSettings(rank=2, alpha=3.0, targets=("q_proj", "down_proj")))
    save_adapter(model, tmp_path / "adapter")
    again = tiny("llama")
    load_adapter(again, tmp_path / "adapter")
    assert trained(again).keys() == trained(model).keys()
    assert all(torch.equal(trained(again)[key], tensor) for key, tensor in trained(model).items())
    theirs = PeftModel.from_pretrained(tiny("llama"), tmp_path / "adapter")
    prompts, responses = ragged(PROMPTS, 3), ragged(RESPONSES, 4)
    with torch.no_grad():
        torch.testing.assert_close(*(stock_rows(each, prompts, responses) for each in (theirs, again)))
    save_adapter(again, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted("llama"), tmp_path / "adapter")
    with pytest.raises(
        ValueError, match=r"adapter \S+ is not of this base: base_model.model.model.layers.0.mlp.down_proj"
    ):
        load_adapter(made("llama", **GROUPED | {"intermediate_size": 40}), tmp_path / "adapter")


def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kd_core.models.backends.lora import save_adapter;"
        "from tests.kd_core.models.backends.test_lora import adapted;"
        "save_adapter(adapted('llama', trained=False), Path(sys.argv[1]))"
    )
    for number in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / str(number))], check=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    state = torch.random.get_rng_state()
    key, drawn = next(iter(trained(adapted("llama", seed=0)).items()))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(trained(adapted("llama", seed=1))[key], drawn)


def test_of_a_base_in_half_precision_only_the_adapter_is_in_float32() -> None:
    model = tiny("llama").bfloat16()
    add_adapter(model, SETTINGS, 0)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    hidden = states(model, ragged(PROMPTS, 3), ragged(RESPONSES, 4))
    assert hidden.dtype == torch.bfloat16
    hidden.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained(model).values())


def test_targets() -> None:
    chosen = targeted(tiny("llama"), LoraSettings(targets=("v_proj", "layers.1.mlp.up_proj")))
    layers = [f"model.layers.{n}" for n in range(2)]
    assert chosen == [f"{layers[0]}.self_attn.v_proj", f"{layers[1]}.self_attn.v_proj", f"{layers[1]}.mlp.up_proj"]
    model = adapted("llama", LoraSettings(targets=("v_proj", "layers.1.mlp.up_proj")))
    assert {key.partition(".lora_")[0] for key in trained(model)} == set(chosen)
    everywhere = targeted(tiny("llama"), LoraSettings())
    assert len(everywhere) == 14
    assert "lm_head" not in everywhere
    with pytest.raises(
        ValueError, match=r"a llama has no matrix 'query'\nit has: down_proj, gate_proj, k_proj, o_proj"
    ):
        targeted(tiny("llama"), LoraSettings(targets=("q_proj", "query")))
    with pytest.raises(ValueError, match=r"a t5 has no matrix 'roj'\nit has: k, o, q, v, wi, wo"):
        targeted(tiny("t5"), LoraSettings(targets=("roj",)))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("rank", 0, "rank must be at least 1, got 0"),
        ("alpha", 0.0, "alpha must be above 0, got 0"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1"),
        ("targets", (), "targets must be all-linear or names of matrices, got none"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LoraSettings(**{name: value})


def test_without_peft_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda name: None if name == "peft" else find_spec(name))
    with pytest.raises(
        ValueError, match=r"peft, which is not installed\ninstall it with: pip install 'distill-llm\[lora\]'"
    ):
        LoraSettings()
