"""The stage `label_outputs`: the teacher's distribution at every token that it wrote, and the error of that form."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from kd_core.losses.soft_targets import TeacherLabels, TopKLabels
from kd_core.models.backends.remote import RemoteModel
from kd_core.models.policy import encode_rows, head_of
from kd_core.models.prompts import Prompt
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import mixed_seed
from kd_core.rollout.teacher_labels import LabelSettings, asked_labels, label_error, make_labels, token_places
from kd_core.train.supervised import Pairs, pair_states
from tasks.compute.device import teacher_devices
from tasks.compute.models import LoadedModel, load_artifact
from tasks.compute.served import ANSWERS
from tasks.engine.settings import RuntimeSettings
from tasks.labels.files import HEAD, collect, drawn_labels, head_writer, uniform_numbers, write_labels
from tasks.pairs.inputs import output_columns, prompt_rows, written_outputs
from tasks.store.artifacts import Artifact
from tasks.store.files import read_json, write_json
from tasks.store.shards import Making, Shard, Sharded, Writer
from tasks.store.stage import Build, stage

MEASURED = "measured.json"  # no part of the artifact
SHARD_OUTPUTS = 512
MEASURED_OUTPUTS = 64  # the first ones: what labels lose against dense is measured there


@stage
def label_outputs(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    outputs: Artifact,
    prompt: Prompt,
    max_source_tokens: int,
    settings: LabelSettings,
    seed: int,
) -> None:
    """Write labels-*.parquet, a row a token, and the head that hidden states need; finished shards survive a kill.

    The teacher reads its sources as it did when it wrote: `prompt` and `max_source_tokens` are those of `score`. One
    behind a server tells its likeliest tokens, which are labels of kind topk, and of no other.
    """
    written = written_outputs(corpus, outputs)[1]
    beside = (MEASURED, HEAD) if settings.kind == "hidden" else (MEASURED,)  # files of the first shard
    parts = (
        Shard((f"labels-{number:05d}.parquet", *(() if number else beside)), index, len(index))
        for number, index in enumerate(torch.arange(len(written)).split(SHARD_OUTPUTS))
    )
    shards = Sharded(build, "outputs", parts)
    answers = build.checkpoints.dir / ANSWERS
    shards.make(partial(_opens, corpus, teacher, outputs, prompt, max_source_tokens, settings, seed, answers))
    build.shards.collect(*(name for name in shards.files if name == HEAD))
    tokens = sum(map(len, written))
    collect(build, [name for name in shards.files if name.endswith(".parquet")], tokens)
    build.record(tokens=tokens, **read_json(build.shards.dir / MEASURED))


def _opens(
    corpus: Artifact,
    teacher: Artifact,
    outputs: Artifact,
    prompt: Prompt,
    max_source_tokens: int,
    settings: LabelSettings,
    seed: int,
    answers: Path,
    runtime: RuntimeSettings,
) -> Callable[[Tensor], Making]:
    """The teacher and what it reads again, opened once a process; then what makes the labels of some outputs."""
    loaded = load_artifact(teacher, teacher_devices(runtime), answers=answers)
    texts, written = written_outputs(corpus, outputs)
    pairs = Pairs(prompt_rows(loaded, prompt, texts, max_source_tokens), TokenRows.of(written))
    ids = torch.tensor(output_columns(outputs, "id")["id"].to_pylist())

    @torch.no_grad()
    def work(index: Tensor) -> Making:
        yield 0
        asks = isinstance(loaded.model, RemoteModel)
        drawn_by = mixed_seed(seed, int(index[0]))
        told = _told(loaded, pairs, index, settings) if asks else None
        labels = _labels(loaded, pairs, index, settings, drawn_by) if told is None else _rounded(told)
        place = _place(ids[index], pairs.target.lengths[index])
        writers: list[Writer] = [partial(write_labels, labels=labels, place=place, vocab_size=loaded.num_tokens)]
        if index[0] == 0:
            drawn_by = mixed_seed(seed, len(written))
            measured = _lost(loaded, pairs, settings, drawn_by) if told is None else _untold(told)
            writers += [partial(write_json, record=measured)]
            if settings.kind == "hidden":
                writers += [head_writer(head_of(loaded.model, loaded.num_tokens))]
        return writers

    return work


def _lost(teacher: LoadedModel, pairs: Pairs, settings: LabelSettings, seed: int) -> dict[str, float]:
    """What labels lose against dense ones, on the first outputs."""
    head = head_of(teacher.model, teacher.num_tokens)
    first = torch.arange(min(MEASURED_OUTPUTS, settings.batch_rows, len(pairs.target)))
    hidden_ME, _ = pair_states(teacher.model, pairs, first)
    error = label_error(drawn_labels(hidden_ME, head, settings, seed), hidden_ME, head)
    return {"kl_to_dense": error.divergence, "mass_elsewhere": error.missed}


def _told(teacher: LoadedModel, pairs: Pairs, index: Tensor, settings: LabelSettings) -> TopKLabels:
    """The labels of some consecutive outputs by a teacher behind a server, as it told them."""
    if settings.kind != "topk":
        raise ValueError(f"labels of kind {settings.kind} need the teacher here, not behind a server\nset kind=topk")
    memory, (tokens_BT, mask_BT) = encode_rows(teacher.model, pairs.source, index), pairs.target.batch(index, 0)
    return asked_labels(teacher.model, memory, tokens_BT, mask_BT, settings.top_k, settings.tail)


def _rounded(told: TopKLabels) -> TopKLabels:
    """As labels of a teacher that is here are kept."""
    return replace(told, log_prob_MK=told.log_prob_MK[:].half())


def _untold(told: TopKLabels) -> dict[str, float]:
    """What labels leave open, on the first outputs: the mean mass of the tokens that the server did not name."""
    kept_M = told.log_prob_MK[:].double().exp().sum(dim=1)
    return {"mass_untold": float((1 - kept_M).clamp(min=0).mean())}


def _labels(teacher: LoadedModel, pairs: Pairs, index: Tensor, settings: LabelSettings, seed: int) -> TeacherLabels:
    """The labels of some consecutive outputs, token by token; the teacher reads them by length."""
    head = head_of(teacher.model, teacher.num_tokens)
    length_B = pairs.target.lengths[index]
    start_B = length_B.cumsum(0) - length_B
    uniform_MN = uniform_numbers(int(length_B.sum()), settings, seed)
    found: TeacherLabels | None = None
    places: list[Tensor] = []
    order = (pairs.source.lengths[index] + length_B).argsort(stable=True)
    for rows in order.split(settings.batch_rows):
        place_M = token_places(start_B[rows], length_B[rows])
        hidden_ME, _ = pair_states(teacher.model, pairs, index[rows])
        made = make_labels(hidden_ME, head, settings, uniform_MN[place_M].to(hidden_ME.device))
        kept = made.of(torch.arange(len(place_M)), torch.device("cpu"))
        found = kept if found is None else found.followed_by(kept)
        places.append(place_M)
    assert found is not None  # no shard is empty
    return found.of(torch.cat(places).argsort())


def _place(id_B: Tensor, length_B: Tensor) -> pa.Table:
    """Which token of which output each row is of."""
    id_M, position_M = id_B.repeat_interleave(length_B), token_places(torch.zeros_like(length_B), length_B)
    return pa.table({"id": pa.array(id_M.numpy()), "position": pa.array(position_M.numpy(), pa.int32())})
