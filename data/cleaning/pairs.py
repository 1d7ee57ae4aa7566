"""What makes a pair unfit, and when two pairs are the same.

Every pair that is read ends in exactly one of two tables: kept, or dropped with its reason.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from data.visible import comparable, is_blank, without_marks

PAIR_SCHEMA = pa.schema([(name, pa.string()) for name in ("dialogue", "source", "target")])
DROPPED_SCHEMA = pa.schema([(name, pa.string()) for name in ("split", "dialogue", "source", "target", "reason")])

DUPLICATE = "duplicate"
_WORDPUNCT = re.compile(r"\w+|[^\w\s]+")
# Unicode's Cc without the white space that str.split() takes for a space
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


def normalise_space(text: str) -> str:
    """Runs of white space (any of Unicode's) as one space, none at the ends."""
    return " ".join(text.split())


def tokens(text: str) -> list[str]:
    """Lower-case wordpunct tokens without those that are a substring of `string.punctuation`.

    Source: Wen et al. 2022, whose cleaned corpora the LLMR paper used; wordpunct as in NLTK.
    """
    return [token for token in _WORDPUNCT.findall(text.lower()) if token not in string.punctuation]


def token_counts(texts: Iterable[str]) -> Counter[str]:
    """How often each of the `tokens` of some texts occurs, in order of first occurrence; what is invisible left out."""
    counted = Counter(_WORDPUNCT.findall(comparable("\n".join(texts)).lower()))
    for token in [token for token in counted if token in string.punctuation]:
        del counted[token]
    return counted


def pair_key(source: str, target: str) -> bytes:
    """16 bytes that are equal exactly when what shows of both texts has equal `tokens` (but for a 128-bit collision).

    Deviation from Wen et al., who join both texts by a space: here the border counts, so that ("a", "b c") and
    ("a b", "c") stay two pairs.
    """
    text = " ".join(tokens(comparable(source))) + "\n" + " ".join(tokens(comparable(target)))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Rules:
    """Longest source and target in words separated by white space, None = no limit; whether case is kept."""

    max_source_words: int | None = None
    max_target_words: int | None = None
    lowercase: bool = False

    def normalise(self, text: str) -> str:
        """The text as it is kept: without byte order marks, its white space single spaces."""
        return normalise_space(without_marks(text.lower() if self.lowercase else text))

    def flaw(self, source: str, target: str) -> str | None:
        """Why this pair, its white space normalised, is unfit by itself; None if it is not."""
        for name, text, limit in (
            ("source", source, self.max_source_words),
            ("target", target, self.max_target_words),
        ):
            if is_blank(text):
                return f"empty {name}"
            if _CONTROL.search(text):
                return f"control character in {name}"
            if limit is not None and text.count(" ") >= limit:
                return f"{name} longer than {limit} words"
        return None


@dataclass
class Cleaned:
    """One split after cleaning: its table of PAIR_SCHEMA, what was dropped, and the keys of the pairs kept."""

    kept: Any
    dropped: Any
    keys: set[bytes] = field(default_factory=set)


def clean(split: str, batches: Iterable[Any], rules: Rules, others: dict[str, set[bytes]]) -> Cleaned:
    """The fit pairs of one split, in their order; the first of several equal ones stays.

    batches: of RAW_SCHEMA. others: the keys of splits that take precedence; a pair found there is dropped.
    """
    kept_batches, dropped_batches = [], []
    keys: set[bytes] = set()
    for batch in batches:
        kept: tuple[list[str], ...] = ([], [], [])
        dropped: tuple[list[str], ...] = ([], [], [], [], [])
        for dialogue, raw_source, raw_target, raw_flaw in zip(*(column.to_pylist() for column in batch), strict=True):
            source, target = rules.normalise(raw_source or ""), rules.normalise(raw_target or "")
            reason = raw_flaw or rules.flaw(source, target)
            if reason is None:
                key = pair_key(source, target)
                reason = _seen(key, keys, others)
            if reason is None:
                keys.add(key)
                _append(kept, (dialogue, source, target))
            else:
                _append(dropped, (split, dialogue, source, target, reason))
        kept_batches.append(pa.record_batch(list(kept), schema=PAIR_SCHEMA))
        dropped_batches.append(pa.record_batch(list(dropped), schema=DROPPED_SCHEMA))
    return Cleaned(
        kept=pa.Table.from_batches(kept_batches, schema=PAIR_SCHEMA),
        dropped=pa.Table.from_batches(dropped_batches, schema=DROPPED_SCHEMA),
        keys=keys,
    )


def _seen(key: bytes, keys: set[bytes], others: dict[str, set[bytes]]) -> str | None:
    if key in keys:
        return DUPLICATE
    return next((f"also in {split}" for split, other in others.items() if key in other), None)


def _append(columns: tuple[list[str], ...], row: tuple[str, ...]) -> None:
    for column, value in zip(columns, row, strict=True):
        column.append(value)
