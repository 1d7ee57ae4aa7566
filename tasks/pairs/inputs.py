"""What the stages that go on from the pre-distilled student read: inputs, and the teacher's outputs for them."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.batching import Sources, TokenRows
from kd_core.models.prompts import PLACEHOLDER, wrapped_rows
from tasks.compute.models import LoadedModel
from tasks.pairs.splits import read_split
from tasks.store.artifacts import Artifact


def prompted_sources(pupil: LoadedModel, prompt: str, texts: Sequence[str], max_tokens: int) -> Sources:
    """The texts as the student reads them, and as the teacher does."""
    raw = TokenRows.encode(pupil.tokenizer, texts, max_tokens)
    return Sources(raw, prompt_rows(pupil, prompt, texts, max_tokens))


def written_outputs(corpus: Artifact, outputs: Artifact) -> tuple[list[str], list[list[int]]]:
    """The training inputs that the teacher wrote for, and its outputs, token by token as it wrote them.

    A truncated output has no end of sequence to learn.
    """
    shards = sorted(outputs.path.glob("outputs-*.parquet"))
    written = pa.concat_tables([pq.read_table(shard, columns=["id", "token_ids"]) for shard in shards])
    train = read_split(corpus, "train", ("id", "source"))
    by_id = dict(zip(train["id"], train["source"], strict=True))
    return [by_id[number] for number in written["id"].to_pylist()], written["token_ids"].to_pylist()


def prompt_rows(reader: LoadedModel, prompt: str, sources: Sequence[str], max_tokens: int) -> TokenRows:
    """What a teacher reads of each source: the prompt's own words are never cut, and come on top of `max_tokens`.

    Every row ends in the end of sequence, with one exception: a causal model goes straight on writing where the prompt
    has words after the source, which are the separator then.
    """
    open_end = not reader.model.config.is_encoder_decoder and not prompt.endswith(PLACEHOLDER)
    return wrapped_rows(reader.tokenizer, prompt, sources, max_tokens, ends=not open_end)
