"""What the stages on pairs read: columns of a split, and inputs and outputs as token ids."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.models.prompts import PLACEHOLDER, Chat, Prompt, Prompts, response_end, wrapped_rows
from kd_core.models.special_ids import also_ends
from kd_core.models.token_rows import TokenRows
from kd_core.train.batches import Sources
from kd_core.train.budget import Budget
from kd_core.train.supervised import Pairs, SupervisedSettings
from tasks.compute.models import LoadedModel
from tasks.store.artifacts import Artifact

Pair = tuple[LoadedModel | None, LoadedModel]  # teacher and student; None where labels stand for the teacher


def read_split(corpus: Artifact, split: str, columns: Sequence[str], rows: int | None = None) -> dict[str, list[Any]]:
    """Columns of a prepared split, its first `rows` rows."""
    table = pq.read_table(corpus.path / f"{split}.parquet", columns=list(columns))
    return dict(table.slice(0, rows).to_pydict())


def prompt_rows(reader: LoadedModel, prompt: Prompt, sources: Sequence[str], max_tokens: int) -> TokenRows:
    """What a model reads of each source: the prompt's own words are never cut, and come on top of `max_tokens`.

    Every row ends in the end of sequence, with two exceptions: a causal model goes straight on writing where the prompt
    has words after the source, which are the separator then; and a chat is as its template has it. A model that reads
    a chat ends what it writes where its template ends a turn, whether its config names that end or not.
    """
    if isinstance(prompt, Chat):
        also_ends(reader.model, [response_end(reader.tokenizer, prompt)])
    open_end = isinstance(prompt, str) and not reader.is_encoder_decoder and not prompt.endswith(PLACEHOLDER)
    return wrapped_rows(reader.tokenizer, prompt, sources, max_tokens, ends=not open_end)


def student_rows(student: LoadedModel, prompts: Prompts, sources: Sequence[str], max_tokens: int) -> TokenRows:
    """What the student reads of each source."""
    prompt = prompts.of_student(is_encoder_decoder=student.is_encoder_decoder)
    return prompt_rows(student, prompt, sources, max_tokens)


def both_read(pair: Pair, prompts: Prompts, texts: Sequence[str], max_tokens: int) -> Sources:
    """The texts as the student reads them, and as the teacher does (as the student does, where there is none)."""
    teacher, student = pair
    read = student_rows(student, prompts, texts, max_tokens)
    return Sources(read, read if teacher is None else prompt_rows(teacher, prompts.teacher, texts, max_tokens))


def read_sources(
    corpus: Artifact, split: str, pair: Pair, prompts: Prompts, max_tokens: int, rows: int | None = None
) -> Sources:
    """The sources of a split, its first `rows`, as the student reads them, and as the teacher does."""
    return both_read(pair, prompts, read_split(corpus, split, ("source",), rows)["source"], max_tokens)


def validation_sources(corpus: Artifact, pair: Pair, prompts: Prompts, settings: Budget) -> Sources:
    """The validation inputs that a method looks at, as both read them, and what the data set has for them."""
    split = read_split(corpus, "validation", ("source", "target"), settings.validation_rows)
    sources, (teacher, student) = both_read(pair, prompts, split["source"], settings.max_source_tokens), pair
    of_student = prompts.of_student(is_encoder_decoder=student.is_encoder_decoder)
    reader, prompt = (student, of_student) if teacher is None else (teacher, prompts.teacher)
    end, limit = response_end(reader.tokenizer, prompt), settings.sampling.max_new_tokens
    tokens = reader.tokenizer(split["target"], add_special_tokens=False, verbose=False)["input_ids"]
    text = TokenRows.of([[*row, end][:limit] for row in tokens])  # one that is cut has no end: it would surprise anyone
    return replace(sources, text=text)


def output_columns(outputs: Artifact, *columns: str) -> pa.Table:
    """Columns of the teacher's outputs, all shards in order."""
    shards = sorted(outputs.path.glob("outputs-*.parquet"))
    return pa.concat_tables([pq.read_table(shard, columns=list(columns)) for shard in shards])


def written_outputs(corpus: Artifact, outputs: Artifact) -> tuple[list[str], list[list[int]]]:
    """The training inputs that the teacher wrote for, and its outputs, token by token as it wrote them.

    Ids and no text, so that a truncated output stays without an end of sequence.
    """
    written = output_columns(outputs, "id", "token_ids")
    train = read_split(corpus, "train", ("id", "source"))
    by_id = dict(zip(train["id"], train["source"], strict=True))
    return [by_id[number] for number in written["id"].to_pylist()], written["token_ids"].to_pylist()


def seqkd_pairs(
    student: LoadedModel, prompts: Prompts, corpus: Artifact, outputs: Artifact, settings: SupervisedSettings
) -> Pairs:
    """The sources, as the student reads them, with the teacher's outputs."""
    sources, written = written_outputs(corpus, outputs)
    targets = [ids[: settings.max_target_tokens] for ids in written]
    return Pairs(student_rows(student, prompts, sources, settings.max_source_tokens), TokenRows.of(targets))


def reference_pairs(
    student: LoadedModel, prompts: Prompts, split: dict[str, list[str]], settings: SupervisedSettings
) -> Pairs:
    """The sources, as the student reads them, with the references."""
    prompt = prompts.of_student(is_encoder_decoder=student.is_encoder_decoder)
    end = response_end(student.tokenizer, prompt)
    return Pairs(
        prompt_rows(student, prompt, split["source"], settings.max_source_tokens),
        TokenRows.targets(student.tokenizer, split["target"], settings.max_target_tokens, end),
    )
