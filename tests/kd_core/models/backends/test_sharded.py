"""Models whose layers two ranks share out: they score, write and learn as whole ones do."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, distributed

from kd_core.losses.lm_head import weighted_nll
from kd_core.models.backends.recomputing import recomputing
from kd_core.models.backends.sharded import cut, is_part, joined, part_of, shard, weights, whole
from kd_core.models.loading import load_model, load_tokenizer
from kd_core.models.policy import backend_of, encode, head_of
from kd_core.rollout.sampling import SamplingSettings, greedy, sample
from tests.kd_core.models.backends.families import ragged, states, tiny, write_tokenizer
from tests.kd_core.together import together

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("llama", "qwen3", "gemma2", "gpt2")  # gpt2: its weights lie the other way round, and have biases
PROMPTS, RESPONSES = (5, 1, 9), (4, 6, 2)
every_family = pytest.mark.parametrize("name", NAMES)
Both = tuple[Any, Any]  # of the model that each rank has whole, and of the one that is shared out


def compared(folder: Path) -> dict[str, dict[str, Any]]:
    """What a rank finds, by family."""
    return {name: _compared(folder / name, distributed.get_rank()) for name in NAMES}


def _compared(folder: Path, rank: int) -> dict[str, Any]:
    plain, parted = (load_model(folder, dtype="float64", tokenizer=load_tokenizer(folder)) for _ in range(2))  # type: ignore[arg-type]
    assert backend_of(parted).name == "packed"
    layers = [name for name, _ in plain.named_parameters() if any(part.isdigit() for part in name.split("."))]
    shard(parted, torch.device("cpu"))
    own = {name: part_of(x) for name, x in parted.named_parameters()}
    found: dict[str, Any] = {
        "parts": (sum(own[name].numel() for name in layers), sum(plain.get_parameter(name).numel() for name in layers)),
        "rest": all(torch.equal(x, plain.get_parameter(name)) for name, x in own.items() if name not in layers),
        "logits": [_logits(model, rank) for model in (plain, parted)],
        "written": [_written(model, rank) for model in (plain, parted)],
    }
    groups = [g for x in parted.modules() if hasattr(x, "unshard") for g in x._get_fsdp_state()._fsdp_param_groups]
    found["noted"] = [len(g._post_forward_indices) + len(g.comm_ctx.post_forward_order) for g in groups]
    short = (1, 1) if rank else (3, 2)  # nothing before the last token on one rank alone
    for kind, prompts, again in (("", PROMPTS, False), ("short", short, False), ("again", PROMPTS, True)):
        found[f"gradients {kind}"] = [_gradients(model, rank, prompts, again=again) for model in (plain, parted)]
    with whole(parted):
        found["whole"] = [{n: x.detach().clone() for n, x in model.named_parameters()} for model in (plain, parted)]
    found["weights"] = dict(plain.state_dict()), weights(parted, wanted=rank == 0)
    name = layers[-1]
    like, full = parted.get_parameter(name), torch.randn_like(plain.get_parameter(name))
    distributed.broadcast(full, 0)
    found["cut"] = full, joined(cut(full, like), like)
    return found


@torch.no_grad()
def _logits(model: Any, rank: int) -> Tensor:
    return head_of(model).logits(states(model, ragged(PROMPTS, rank), ragged(RESPONSES, 7)))


@torch.no_grad()
def _written(model: Any, rank: int) -> list[Tensor]:
    """Ranks do not write equally long."""
    prompts = encode(model, *ragged(PROMPTS, 1 + rank))
    settings = SamplingSettings(max_new_tokens=9 + 3 * rank)
    rollout = sample(model, prompts, settings, torch.Generator().manual_seed(rank))
    return [rollout.tokens_BT, rollout.log_prob_BT, greedy(model, prompts, 4 + 2 * rank).tokens_BT]


def _gradients(model: Any, rank: int, prompts: tuple[int, ...], *, again: bool) -> dict[str, Tensor]:
    """Summed over ranks, of two passes; in the first, the second rank has no token that counts."""
    model.zero_grad()
    with recomputing(model) if again else nullcontext():
        for number in range(2):
            tokens, mask = ragged(RESPONSES[: len(prompts)], 2 + rank + number)
            mask = mask & (rank == 0 or number == 1)
            hidden = states(model, ragged(prompts, 1 + rank), (tokens, mask))
            ones = torch.ones(len(hidden), dtype=hidden.dtype)
            weighted_nll(hidden, head_of(model), tokens[mask], ones).backward()
    found = {}
    for name, x in model.named_parameters():
        if is_part(x):
            found[name] = joined(part_of(x.grad), x)
        else:
            found[name] = x.grad.clone()
            distributed.all_reduce(found[name])
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sharded")
    for name in NAMES:
        tiny(name).save_pretrained(folder / name)
        write_tokenizer(folder / name)
    return together(compared, 2, folder, folder)


def assert_same(pair: Both) -> None:
    plain, parted = pair
    assert plain.keys() == parted.keys()
    for name, x in plain.items():
        torch.testing.assert_close(parted[name], x, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@every_family
def test_a_sharded_model_scores_as_a_whole_one(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        torch.testing.assert_close(*rank[name]["logits"], atol=1e-9, rtol=1e-9)


@every_family
def test_a_sharded_model_writes_the_same_tokens(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        for plain, parted in zip(*rank[name]["written"], strict=True):
            torch.testing.assert_close(plain, parted, atol=1e-9, rtol=1e-9)


@every_family
@pytest.mark.parametrize("kind", ["", "short", "again"])
def test_gradients_are_those_of_all_ranks_summed(ranks: list[dict[str, Any]], name: str, kind: str) -> None:
    """Also where a rank's prompts or responses leave it nothing to do, and where layers are run again."""
    for rank in ranks:
        assert_same(rank[name][f"gradients {kind}"])


@every_family
def test_each_rank_has_its_part_of_the_layers_and_all_else(ranks: list[dict[str, Any]], name: str) -> None:
    parts, sizes = zip(*(rank[name]["parts"] for rank in ranks), strict=True)
    assert sum(parts) == sizes[0]
    assert max(parts) <= 0.51 * sizes[0]
    assert all(rank[name]["rest"] for rank in ranks)


@every_family
def test_passes_without_a_way_back_leave_nothing_behind(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        assert set(rank[name]["noted"]) == {0}


@every_family
def test_all_weights_are_had_again(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = ranks
    for rank in ranks:
        assert_same(rank[name]["whole"])
        assert torch.equal(*rank[name]["cut"])
    assert_same(first[name]["weights"])
    assert second[name]["weights"][1] == {}
