import re
from pathlib import Path

import pytest
import torch

from kd_core.models.loading import load_tokenizer
from kd_core.models.token_rows import TokenRows, token_names
from tests.tasks.tiny_models import write_byte_level, write_model


def test_batches_are_right_padded_rows() -> None:
    rows = TokenRows.of([[5, 6, 1], [7, 1], [8, 9, 4, 1]])
    ids, mask = rows.batch(torch.tensor([1, 2]), pad_id=0)
    assert ids.tolist() == [[7, 1, 0, 0], [8, 9, 4, 1]]
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    last, _ = rows.batch(torch.tensor([2, 1]), pad_id=0)  # the last row's padding must not read past the end
    assert last.tolist() == [[8, 9, 4, 1], [7, 1, 0, 0]]


@pytest.mark.cuda
def test_batches_reach_a_cuda_device_without_anybody_waiting() -> None:
    rows = TokenRows.of([[5, 6, 1], [7, 1]])
    torch.cuda.set_sync_debug_mode("error")
    try:
        ids, mask = rows.batch(torch.tensor([1, 0]), pad_id=0, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ids.tolist() == [[7, 1, 0], [5, 6, 1]]
    assert mask.int().tolist() == [[1, 1, 0], [1, 1, 1]]


def test_byte_level_tokens_are_named_by_their_text_and_parts_of_a_character_by_their_bytes(tmp_path: Path) -> None:
    tokenizer = write_byte_level(tmp_path)
    ids = tokenizer(" the cat\n said “é”<|endoftext|>")["input_ids"]
    names = token_names(tokenizer, ids)
    assert "Ġthe" in names
    assert "Ċ" in names
    assert names[-1] == "<|endoftext|>"
    assert "<0xE2>" in names
    whole = "".join(names[:-1]).replace("Ġ", " ").replace("Ċ", "\n")
    data = re.sub(rb"<0x(..)>", lambda found: bytes.fromhex(found[1].decode()), whole.encode())
    assert data.decode() == " the cat\n said “é”"


def test_other_tokens_keep_their_names(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_model(tmp_path, own_head=False))
    ids = tokenizer("the cat")["input_ids"]
    assert token_names(tokenizer, ids) == tokenizer.convert_ids_to_tokens(ids)
