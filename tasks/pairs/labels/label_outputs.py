"""The stage `label_outputs`: the teacher's distribution at every token that it wrote, and the error of that form."""

from functools import partial

import pyarrow as pa
import torch
from torch import Tensor

from kd_core.losses.soft_targets import TeacherLabels
from kd_core.models.policy import head_of
from kd_core.models.prompts import Prompt
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import mixed_seed
from kd_core.rollout.teacher_labels import LabelSettings, label_error, make_labels, token_places
from kd_core.train.supervised import Pairs, pair_states
from tasks.compute.device import device_of
from tasks.compute.models import LoadedModel, load_artifact
from tasks.labels.files import HEAD, collect, drawn_labels, head_writer, uniform_numbers, write_labels
from tasks.pairs.inputs import output_columns, prompt_rows, written_outputs
from tasks.store.artifacts import Artifact
from tasks.store.shards import Shard, Sharded
from tasks.store.stage import Build, stage

SHARD_OUTPUTS = 512
MEASURED_OUTPUTS = 64  # the first ones: what labels lose against dense is measured there


@stage
@torch.no_grad()
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

    The teacher reads its sources as it did when it wrote: `prompt` and `max_source_tokens` are those of `score`.
    """
    loaded = load_artifact(teacher, device_of(build.runtime))
    head = head_of(loaded.model, loaded.num_tokens)
    texts, written = written_outputs(corpus, outputs)
    pairs = Pairs(prompt_rows(loaded, prompt, texts, max_source_tokens), TokenRows.of(written))
    ids = torch.tensor(output_columns(outputs, "id")["id"].to_pylist())
    parts = (
        Shard((f"labels-{number:05d}.parquet",), index, len(index))
        for number, index in enumerate(torch.arange(len(written)).split(SHARD_OUTPUTS))
    )
    shards = Sharded(build, "outputs", parts)
    for shard in shards.missing():
        labels = _labels(loaded, pairs, shard.of, settings, mixed_seed(seed, int(shard.of[0])))
        place = _place(ids[shard.of], pairs.target.lengths[shard.of])
        shards.write(shard, partial(write_labels, labels=labels, place=place, vocab_size=len(head)))
    if settings.kind == "hidden":
        head_writer(head)(build.dir / HEAD)
    collect(build, shards.files, len(pairs.target.flat))
    first = torch.arange(min(MEASURED_OUTPUTS, settings.batch_rows, len(written)))
    hidden_ME, _ = pair_states(loaded.model, pairs, first)
    error = label_error(drawn_labels(hidden_ME, head, settings, mixed_seed(seed, len(written))), hidden_ME, head)
    build.record(tokens=len(pairs.target.flat), kl_to_dense=error.divergence, mass_elsewhere=error.missed)


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
