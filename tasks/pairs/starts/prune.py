"""The stage `prune`: a student made of some of its teacher's layers, before it is taught."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_core.models.backends.pairs import num_positions
from kd_core.models.loading import save_model
from kd_core.models.policy import shift_right
from kd_core.models.prompts import Prompt, response_end
from kd_core.models.pruning import Choice, Layers, block_influence, kept_layers, num_layers, pruned
from kd_core.models.token_rows import TokenRows
from tasks.compute.device import device_of
from tasks.compute.models import LoadedModel, load_artifact
from tasks.pairs.inputs import prompt_rows, read_split
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The sample that block influence is measured on: training pairs, evenly spread, the sources in the prompt."""

    prompt: Prompt
    max_source_tokens: int
    max_target_tokens: int
    rows: int = 64


@stage
def prune(
    build: Build,
    teacher: Artifact,
    layers: Layers,
    choose: Choice,
    corpus: Artifact | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Make `model/`, and record which layers were kept; where influence decides, that and on what it was measured.

    Raises ValueError for layers that the teacher does not have.
    """
    loaded = load_artifact(teacher, device_of(build.runtime))
    influence: list[float] = []
    if corpus is not None and calibration is not None:
        rows = calibration_rows(loaded, corpus, calibration)
        influence = block_influence(loaded.model, rows)
        num_tokens = sum(ids.numel() for row in rows for name, ids in row.items() if name != "attention_mask")
        build.record(block_influence=influence, calibration_rows=len(rows), calibration_tokens=num_tokens)
    _, total = num_layers(loaded.model.config.to_dict())
    kept = kept_layers(layers, choose, total, influence)
    model = pruned(loaded.model, kept)
    save_model(model, loaded.tokenizer, build.dir / "model")
    build.record(teacher_layers=total, kept_layers=list(kept), parameters=model.num_parameters())


def calibration_rows(loaded: LoadedModel, corpus: Artifact, settings: Calibration) -> list[dict[str, Tensor]]:
    """Each row as the model's own forward takes it: a source with its reference, cut to the model's positions."""
    train = read_split(corpus, "train", ("source", "target"))
    total = len(train["source"])
    number = min(settings.rows, total)
    sources, targets = ([train[side][row * total // number] for row in range(number)] for side in ("source", "target"))
    read = prompt_rows(loaded, settings.prompt, sources, settings.max_source_tokens)
    end = response_end(loaded.tokenizer, settings.prompt)
    written = TokenRows.targets(loaded.tokenizer, targets, settings.max_target_tokens, end)
    config, most = loaded.model.config, num_positions(loaded.model)
    rows = []
    for row in range(number):
        source_1S, target_1T = (each.batch(torch.tensor([row]), 0, loaded.model.device)[0] for each in (read, written))
        if config.is_encoder_decoder:
            given = {"input_ids": source_1S, "decoder_input_ids": shift_right(target_1T, config.decoder_start_token_id)}
        else:
            given = {"input_ids": torch.cat([source_1S, target_1T], dim=1)}
        given = {name: ids[:, :most] for name, ids in given.items()}
        rows.append(given | {"attention_mask": torch.ones_like(given["input_ids"])})
    return rows
