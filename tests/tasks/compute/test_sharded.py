"""Models that ranks share out, as stages load and leave them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from kd_core.models.backends.sharded import is_sharded, part_of, weights
from kd_core.models.loading import load_model
from kd_core.models.policy import encode, head_of, target_states
from kd_core.train.ranks import Ranks
from kd_core.train.state import OptimizerSettings, TrainState
from tasks.compute.models import load_artifact, load_pair, save_trained
from tasks.store.artifacts import Artifact
from tests.kd_core.together import together
from tests.tasks.tiny_models import write_bart, write_llama

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
PROMPTS = torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.ones(2, 3, dtype=torch.bool)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    hidden, _ = target_states(model, encode(model, *PROMPTS), *PROMPTS)
    return head_of(model).logits(hidden)


def loaded_and_left(folder: Path) -> dict[str, Any]:
    """By a rank: what it has of a pair, and what of a student is left."""
    teacher, student = load_pair(artifact(folder, "teacher"), artifact(folder, "student"), CPU, sharded="teacher")
    found: dict[str, Any] = {"sharded": [is_sharded(each.model) for each in (teacher, student)]}
    found["logits"] = logits(teacher.model)
    found["held"] = sum(part_of(x).numel() for x in teacher.model.parameters())
    student = load_artifact(artifact(folder, "student"), CPU, sharded=True)
    TrainState.start(student.model, OptimizerSettings()).finish()
    whole = weights(student.model, wanted=Ranks.here().is_first)
    if Ranks.here().is_first:
        save_trained(student, folder / "left", whole)
    for name in ("bart", "adapter"):
        with pytest.raises(ValueError, match="sharded") as caught:
            load_artifact(artifact(folder, name), CPU, sharded=True)
        found[name] = str(caught.value)
    return found


def artifact(folder: Path, stage: str) -> Artifact:
    return Artifact(stage, "0" * 16, folder / stage)


def test_ranks_share_out_what_stages_load(tmp_path: Path) -> None:
    for name in ("teacher", "student"):
        write_llama(tmp_path / name / "model")
    write_bart(tmp_path / "bart" / "model")
    (tmp_path / "adapter" / "adapter").mkdir(parents=True)
    (tmp_path / "adapter" / "adapter" / "base.json").write_text(
        '{"name": "a/b", "revision": null, "dtype": "float32", "content": null}'
    )
    (tmp_path / "left").mkdir()
    ranks = together(loaded_and_left, 2, tmp_path, tmp_path)
    whole = load_model(tmp_path / "teacher" / "model")
    sizes = {name: x.numel() for name, x in whole.named_parameters()}
    in_layers = sum(size for name, size in sizes.items() if ".layers." in name)
    for rank in ranks:
        assert rank["sharded"] == [True, False]
        torch.testing.assert_close(rank["logits"], logits(whole), atol=1e-5, rtol=1e-5)
        assert rank["held"] == sum(sizes.values()) - in_layers // 2
        assert rank["bart"].splitlines()[0].startswith("a model of type 'bart' cannot be sharded")
        assert rank["adapter"] == "the adapter is an adapter, and is not sharded\nleave it out of runtime.sharded"
    before, after = (load_model(tmp_path / each / "model").state_dict() for each in ("student", "left"))
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert (tmp_path / "left" / "model" / "model.safetensors").stat().st_size == (
        tmp_path / "student" / "model" / "model.safetensors"
    ).stat().st_size, "tied weights are written once"


def test_alone_a_rank_has_all_of_a_model(tmp_path: Path) -> None:
    write_llama(tmp_path / "teacher" / "model")
    assert not is_sharded(load_artifact(artifact(tmp_path, "teacher"), CPU, sharded=True).model)
