"""The stage `decode`: what one system writes for a split, and what the teacher makes of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kd_core.lengths import check_lengths, source_length
from kd_core.losses.agreement import agreement
from kd_core.losses.divergence_head import TeacherStates
from kd_core.losses.rewards import RewardSettings
from kd_core.models.backends.remote import RemoteModel, Writing, remote_scores
from kd_core.models.policy import Memory, encode_rows, head_of, target_states
from kd_core.models.prompts import Prompts
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.beam_search import BeamSettings, beam_search
from kd_core.rollout.responses import Responses, mask_through_eos, truncated_rows
from kd_core.rollout.sampling import SamplingSettings, greedy, mixed_seed, sample
from kd_core.rollout.scoring import judge
from tasks.compute.device import teacher_devices
from tasks.compute.models import LoadedModel, load_artifact
from tasks.compute.served import ANSWERS
from tasks.engine.settings import RuntimeSettings
from tasks.pairs.inputs import prompt_rows, read_split, student_rows
from tasks.store.artifacts import Artifact
from tasks.store.shards import Making, Shard, Sharded
from tasks.store.stage import Build, stage

BATCH_ROWS = 64
SHARD_BATCHES = 8

OUTPUTS = pa.schema(
    [
        ("id", pa.int64()),
        ("split", pa.string()),  # that the id is of
        ("prediction", pa.string()),
        ("num_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("reward", pa.float64()),  # the teacher's, summed over the output's tokens, in nats of logit
        ("log_prob", pa.float64()),  # the teacher's, and so on: sums over the output's tokens, in nats
        ("teacher_entropy", pa.float64()),
        ("reverse_kl", pa.float64()),  # KL(writer || teacher)
        ("forward_kl", pa.float64()),  # KL(teacher || writer)
        ("overlap", pa.float64()),  # of either's likeliest 16 tokens, a share of 0 to 1 for each of the output's
        ("token_ids", pa.list_(pa.int32())),
    ]
)


GREEDY = BeamSettings(num_beams=1, no_repeat_ngram_size=0)
UNREAD = replace(GREEDY, max_new_tokens=64)  # in the key of every stage whose outputs are drawn


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How a system writes, and for which inputs."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    split: Literal["validation", "test"] = "test"
    max_rows: int | None = None  # the first rows of the split; None = all
    max_source_tokens: int = source_length()
    decoding: BeamSettings = UNREAD
    sampling: SamplingSettings | None = None  # draw the outputs instead, as a chat does: then decoding is not read
    seed: int = 0  # of the samples

    def __post_init__(self) -> None:
        if self.split not in ("validation", "test"):
            raise ValueError(f"split must be validation or test, got {self.split!r}")
        check_lengths(self)
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {self.max_rows}")


@stage
def decode(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    writer: Artifact,
    prompt: Prompts,
    prompted: bool,
    reward: RewardSettings,
    settings: DecodeSettings,
) -> None:
    """Write outputs.parquet of the model `writer`, which reads what the teacher does if it is `prompted`.

    The reward is the one that LLMR was trained on, unscaled; here a truncated output is bootstrapped, never dropped.
    """
    ids = read_split(corpus, settings.split, ("id",), settings.max_rows)["id"]
    parts = (
        Shard((f"outputs-{number:05d}.parquet",), number, len(rows))
        for number, rows in enumerate(torch.arange(len(ids)).split(BATCH_ROWS * SHARD_BATCHES))
    )
    shards = Sharded(build, "outputs", parts)
    answers = build.checkpoints.dir / ANSWERS
    shards.make(partial(_opens, corpus, teacher, writer, prompt, prompted, reward, settings, answers))
    written = pa.concat_tables([pq.read_table(build.shards.dir / name) for name in shards.files])
    place = {number: i for i, number in enumerate(written["id"].to_pylist())}
    pq.write_table(written.take([place[number] for number in ids]), build.dir / "outputs.parquet")


def _opens(
    corpus: Artifact,
    teacher: Artifact,
    writer: Artifact,
    prompt: Prompts,
    prompted: bool,
    reward: RewardSettings,
    settings: DecodeSettings,
    answers: Path,
    runtime: RuntimeSettings,
) -> Callable[[int], Making]:
    """The models and all that they read, opened once a process; then what makes a shard, by its number."""
    devices = teacher_devices(runtime)
    split = read_split(corpus, settings.split, ("id", "source"), settings.max_rows)
    writer_model = load_artifact(writer, devices if writer.key == teacher.key else devices[0], answers=answers)
    teacher_model = writer_model
    if writer.key != teacher.key:
        teacher_model = load_artifact(teacher, devices, beside=writer_model, answers=answers)
    limit = settings.max_source_tokens
    judged = prompt_rows(teacher_model, prompt.teacher, split["source"], limit)
    if not prompted:
        sources = student_rows(writer_model, prompt, split["source"], limit)
    elif writer_model is teacher_model:
        sources = judged  # the teacher judges itself
    else:
        sources = prompt_rows(writer_model, prompt.teacher, split["source"], limit)
    by_length = sources.lengths.argsort(stable=True).split(BATCH_ROWS * SHARD_BATCHES)

    def work(number: int) -> Making:
        found: list[dict[str, Any]] = []
        for rows in by_length[number].split(BATCH_ROWS):
            found += _write(writer_model, teacher_model, sources, judged, rows, split["id"], reward, settings)
            yield len(found)
        return [partial(pq.write_table, pa.Table.from_pylist(found, schema=OUTPUTS))]

    return work


@torch.no_grad()
def _write(
    writer: LoadedModel,
    teacher: LoadedModel,
    sources: TokenRows,
    judged: TokenRows,
    rows: Tensor,
    ids: list[int],
    reward: RewardSettings,
    settings: DecodeSettings,
) -> Iterator[dict[str, Any]]:
    """A batch of outputs with what the teacher makes of them, in the order of `rows`."""
    memory = encode_rows(writer.model, sources, rows)
    written = _decode(writer, memory, rows, settings)
    read = memory if sources is judged else encode_rows(teacher.model, judged, rows)
    columns = {
        "num_tokens": written.mask_BT.sum(dim=1),
        "truncated": written.truncated_B,
        "reward": _rewards(teacher, read, written, reward),
        **_agreement(teacher, writer, read, memory, written),
    }
    texts = writer.tokenizer.batch_decode(written.tokens_BT, skip_special_tokens=True)
    numbers = zip(*(column.tolist() for column in columns.values()), strict=True)
    for row, text, token_ids, of_row in zip(rows.tolist(), texts, written.tokens_BT.tolist(), numbers, strict=True):
        found = dict(zip(columns, of_row, strict=True))
        found |= {"id": ids[row], "split": settings.split, "prediction": text.strip()}
        yield found | {"token_ids": token_ids[: found["num_tokens"]]}


def _decode(writer: LoadedModel, memory: Memory, rows: Tensor, settings: DecodeSettings) -> Responses:
    """The outputs of a batch. One beam without a ban on repeats is plain greedy decoding.

    Samples are drawn with common random numbers: students are given the same uniforms for the same input.
    """
    model, decoding = writer.model, settings.decoding
    if isinstance(model, RemoteModel):
        return _decode_elsewhere(model, memory, rows, settings)
    if settings.sampling is not None:
        generator = torch.Generator(model.device).manual_seed(mixed_seed(settings.seed, int(rows[0])))
        return sample(model, memory, settings.sampling, generator, num_tokens=writer.num_tokens)
    if decoding.num_beams == 1 and decoding.no_repeat_ngram_size == 0:
        return greedy(model, memory, decoding.max_new_tokens, num_tokens=writer.num_tokens)
    tokens = beam_search(model, memory, decoding, num_tokens=writer.num_tokens).tokens_BT
    mask = mask_through_eos(tokens, model.config.eos_token_id)
    return Responses(tokens, mask, truncated_rows(tokens, mask, model.config.eos_token_id))


def _decode_elsewhere(model: RemoteModel, memory: Any, rows: Tensor, settings: DecodeSettings) -> Responses:
    """The outputs of a teacher behind a server, which draws its samples by random numbers of its own, from a seed."""
    how, sampling = Writing(settings.decoding.max_new_tokens), settings.sampling
    if sampling is not None:
        seeds = [mixed_seed(settings.seed, row) for row in rows.tolist()]
        how = Writing(sampling.max_new_tokens, sampling.temperature, sampling.top_k, sampling.top_p, seeds)
    written = model.write(memory.prompts, how)
    ids = TokenRows.of([each.token_ids for each in written])
    tokens_BT, mask_BT = ids.batch(torch.arange(len(written)), model.config.pad_token_id)
    return Responses(tokens_BT, mask_BT, torch.tensor([each.truncated for each in written]))


def _rewards(teacher: LoadedModel, read: Memory, written: Responses, reward: RewardSettings) -> Tensor:
    """(B,) the teacher's reward of each output, summed over its tokens."""
    kept = replace(reward, truncated="bootstrap")
    judged = judge(teacher.model, read, written, kept, num_tokens=teacher.num_tokens)
    return judged.reward_BT.sum(dim=1)


def _agreement(
    teacher: LoadedModel, writer: LoadedModel, read: Memory, memory: Memory, written: Responses
) -> dict[str, Tensor]:
    """(B,) each: how teacher and writer see each output, summed over its tokens; of a teacher's own, KL 0.

    read, memory: what the teacher and the writer have read; the same for a teacher that judges itself.
    """
    tokens_BT, mask_BT = written.tokens_BT, written.mask_BT
    if isinstance(teacher.model, RemoteModel):  # which has no distribution: the rest stays null
        return {"log_prob": remote_scores(teacher.model, read, tokens_BT, mask_BT)[0].sum(dim=1)}
    hidden_MD, layout = target_states(writer.model, memory, tokens_BT, mask_BT)
    hidden_ME = hidden_MD if read is memory else target_states(teacher.model, read, tokens_BT, mask_BT)[0]
    seen = TeacherStates(hidden_ME, head_of(teacher.model, teacher.num_tokens))
    found = agreement(seen, layout.pack(tokens_BT), (hidden_MD, head_of(writer.model, writer.num_tokens)))
    return {name: layout.pad(each_M).sum(dim=1) for name, each_M in found.by_name().items()}
