"""The stage `tokens`: running text as token ids, cut once into contiguous splits that no window crosses."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data.reading.texts import TextSettings, load_texts
from kd_core.models.loading import ModelSettings, Tokenizer, load_tokenizer
from kd_core.models.tokenizer import train_tokenizer
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # the paper's


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Whose tokenizer is used: a model's by name, or one of `size` tokens trained on the pre-training text."""

    model: ModelSettings | None
    size: int

    def identity(self) -> dict[str, Any]:
        """What the token ids depend on."""
        return {"size": self.size} if self.model is None else {"model": self.model.identity()}


@stage
def tokens(build: Build, dataset: TextSettings, vocabulary: Vocabulary, seed: int, limit: int | None) -> None:
    """Write train, validation, test and pretraining.parquet (a token a row), and tokenizer/.

    seed: which papers are the transfer set. limit: at most this many tokens of it. Documents end in the tokenizer's
    end token. Raises ValueError for a text that leaves a split empty.
    """
    build.progress(0, 1, "reading")
    texts = load_texts(dataset, seed)
    tokenizer = _tokenizer(build, vocabulary, texts.pretraining)
    transfer = encode(build, tokenizer, texts.transfer, "transfer documents")[:limit]
    ends = [round(len(transfer) * share) for share in np.cumsum([*SHARES.values()])]
    parts = dict(zip(SHARES, np.split(transfer, ends[:-1]), strict=True))
    for split, part in parts.items():
        if len(part) == 0:
            raise ValueError(f"the text has {len(transfer)} tokens, which leaves {split} empty\ngive a longer text")
    parts["pretraining"] = encode(build, tokenizer, texts.pretraining, "pre-training documents")
    for split, part in parts.items():
        pq.write_table(pa.table({"token_id": pa.array(part, pa.int32())}), build.dir / f"{split}.parquet")
        build.record(**{f"{split}_tokens": len(part)})
    tokenizer.save_pretrained(build.dir / "tokenizer")
    build.record(vocabulary=len(tokenizer), documents=len(texts.transfer), **asdict(dataset))


def _tokenizer(build: Build, vocabulary: Vocabulary, texts: list[str]) -> Tokenizer:
    named = vocabulary.model
    if named is not None:
        return load_tokenizer(named.path or str(named.name), named.commit)
    if not texts:
        raise ValueError(
            "a model described by its shape needs text to be trained on\n"
            "set dataset.pretraining_path, or name a model that is there: teacher.name"
        )
    build.progress(0, 1, "training the tokenizer")
    return train_tokenizer((line for text in texts for line in text.splitlines()), vocabulary.size)


def check_lengths(corpus: Artifact, window: int, trajectory: int) -> None:
    """Raise ValueError for a split that is too short for a window and its target, or for a trajectory.

    Nothing is run free from in the validation split. A corpus that is only planned has no lengths yet.
    """
    if not corpus.path.exists():
        return
    stats = corpus.manifest().stats
    for split in SHARES:
        least, what = (window, "a window") if split == "validation" else (max(window, trajectory), "a trajectory")
        if stats[f"{split}_tokens"] < least:
            raise ValueError(
                f"{split} has {stats[f'{split}_tokens']} tokens, which is shorter than {what} of {least}\n"
                "give a longer text, or lower windows.context"
            )


def encode(build: Build, tokenizer: Tokenizer, documents: list[str], unit: str) -> Any:
    """All documents one after another, each with the end token. Shapes: -> (N,) int64."""
    end = np.array([tokenizer.eos_token_id], dtype=np.int64)
    parts: list[Any] = []
    for number, text in enumerate(documents):
        build.progress(number, len(documents), unit)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        parts += [np.array(ids, dtype=np.int64), end]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def read_tokens(corpus: Artifact, split: str, device: torch.device | str = "cpu") -> Tensor:
    """The token ids of a split. Shapes: -> (N,)."""
    column = pq.read_table(corpus.path / f"{split}.parquet")["token_id"]
    return torch.from_numpy(column.to_numpy().astype(np.int64)).to(device)
