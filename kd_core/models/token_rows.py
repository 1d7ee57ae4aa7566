"""Tokenised texts: ragged rows of ids, and batches of them.

Shape legend: R rows of the data set, B rows of a batch, S padded length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd_core.lengths import require_length


@dataclass(frozen=True)
class TokenRows:
    """Ragged token ids, stored flat."""

    flat: Tensor  # all ids, int32
    offset_R1: Tensor  # row r is flat[offset[r] : offset[r + 1]]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "TokenRows":
        """From lists of ids."""
        lengths = torch.tensor([0, *map(len, rows)])
        return cls(torch.tensor([i for row in rows for i in row], dtype=torch.int32), lengths.cumsum(0))

    @classmethod
    def encode(cls, tokenizer: Any, texts: Sequence[str], max_tokens: int, *, ends: bool = True) -> "TokenRows":
        """Tokenise texts; a row longer than `max_tokens` is cut and keeps its end of sequence. See `token_lists`."""
        require_length("max_source_tokens", max_tokens)
        return cls.of(token_lists(tokenizer, texts, max_tokens, ends=ends))

    @classmethod
    def targets(cls, tokenizer: Any, texts: Sequence[str], max_tokens: int, end: int | None = None) -> "TokenRows":
        """Texts as a model is to write them: nothing that a tokenizer puts in front, and `end` (of sequence)."""
        require_length("max_target_tokens", max_tokens)
        rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        end = tokenizer.eos_token_id if end is None else end
        return cls.of([[*row[: max_tokens - 1], end] for row in rows])

    def __len__(self) -> int:
        return self.offset_R1.numel() - 1

    @property
    def lengths(self) -> Tensor:
        """(R,) tokens of each row."""
        return self.offset_R1.diff()

    def lists(self) -> list[list[int]]:
        """The ids of each row."""
        return [row.tolist() for row in self.flat.split(self.lengths.tolist())]

    def batch(self, index_B: Tensor, pad_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Right-padded rows. Shapes: (B,) row numbers -> (B, S) ids, (B, S) mask, on `device`."""
        start_B, length_B = self.offset_R1[index_B], self.lengths[index_B]
        column_S = torch.arange(int(length_B.max()))
        mask_BS = column_S[None] < length_B[:, None]
        position_BS = (start_B[:, None] + column_S[None]).clamp(max=self.flat.numel() - 1)
        ids_BS = torch.where(mask_BS, self.flat[position_BS].long(), pad_id)
        if torch.device(device).type == "cuda":  # from memory that stays where it is, nobody waits for a copy
            ids_BS, mask_BS = ids_BS.pin_memory(), mask_BS.pin_memory()
        return ids_BS.to(device, non_blocking=True), mask_BS.to(device, non_blocking=True)


def token_lists(
    tokenizer: Any, texts: Sequence[str], max_tokens: int | None = None, *, ends: bool = True
) -> list[list[int]]:
    """The ids of each text, at most `max_tokens` of them.

    T5's tokenizers append an end of sequence themselves, GPT-2's do not: every row `ends` in one, or none does.
    """
    cut = max_tokens is not None
    rows = tokenizer(list(texts), truncation=cut, max_length=max_tokens, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    if not ends:
        return [row[:-1] if row[-1:] == [end] else row for row in rows]
    room = None if max_tokens is None else max_tokens - 1
    return [row if row[-1:] == [end] else [*row[:room], end] for row in rows]


def token_names(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token as a person reads it: byte-level ones as their text, with the mark Ġ for a space in front.

    A token that is a part of a character has no text: its bytes stand for it, as in <0xE2><0x80>.
    """
    names: list[str] = tokenizer.convert_ids_to_tokens(list(ids))
    if not _is_byte_level(tokenizer):
        return names
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    return [_text(name, byte_of) if set(name) <= byte_of.keys() else name for name in names]


def _is_byte_level(tokenizer: Any) -> bool:
    return tokenizer.is_fast and "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)


def _text(name: str, byte_of: Mapping[str, int]) -> str:
    data = bytes(byte_of[character] for character in name)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in data)
    return text.replace(" ", "Ġ").replace("\n", "Ċ")
