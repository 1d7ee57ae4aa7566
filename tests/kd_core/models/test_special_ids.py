"""Model directories whose files contradict each other: what is believed, what is said, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from kd_core.models.loading import (
    check_same_tokenizer,
    load_model,
    load_tokenizer,
    read_configs,
    read_tokenizer,
    save_model,
)
from kd_core.models.shapes import T5Shape, build_model
from kd_core.models.special_ids import special_ids, vocabulary_size
from kd_core.models.token_rows import TokenRows
from tests.tasks.tiny_models import write_causal, write_model

Change = Callable[[Path], object]


def put(name: str, **fields: Any) -> Change:
    """Change fields of a JSON file; ... takes one out."""

    def change(directory: Path) -> None:
        path = directory / name
        content = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return change


def config(**fields: Any) -> Change:
    return put("config.json", **fields)


def generation(**fields: Any) -> Change:
    return put("generation_config.json", **fields)


def both(*changes: Change) -> Change:
    return lambda directory: [change(directory) for change in changes]


def no_eos(directory: Path) -> None:
    """As `PreTrainedTokenizerFast(tokenizer_file=…)` saves it."""
    put("tokenizer_config.json", eos_token=..., bos_token=..., pad_token=..., unk_token=..., tokenizer_class="X")(
        directory
    )
    put("tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")(directory)


def other_eos(directory: Path) -> None:
    """Fine-tuned with another end token: the tokenizer was told, config.json was not."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.save_pretrained(directory)


def begins(directory: Path) -> None:
    """A tokenizer whose post-processor puts the beginning token in front of every text."""
    special, text = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [special, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    put("tokenizer.json", post_processor=processor)(directory)


def outgrown(directory: Path) -> None:
    """Tokens were added to the tokenizer, the embedding was not resized."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = json.loads((directory / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"<user_{i}>" for i in range(rows - len(tokenizer) + 1)])
    tokenizer.save_pretrained(directory)


def written(directory: Path, kind: str) -> Path:
    return write_causal(directory) if kind == "causal" else write_model(directory, own_head=False)


def remarks(directory: Path) -> tuple[str, ...]:
    return special_ids(*read_configs(directory), read_tokenizer(directory), "it").remarks


# kind, what is changed, (end, pad, decoder start) believed, what is said
ODD: list[tuple[str, Change, tuple[int, int, int | None], str]] = [
    ("causal", no_eos, (0, 0, None), "the tokenizer names none; 0 .<.endoftext.>., that of the model, is taken"),
    ("causal", config(eos_token_id=None), (0, 0, None), "config.json names none; 0 .*, the tokenizer's, is taken"),
    ("causal", both(no_eos, config(eos_token_id=None)), (0, 0, None), "config.json names none and the tokenizer"),
    ("causal", other_eos, (300, 300, None), "config.json names 0 and generation_config.json names 0; 300 .*im_end"),
    ("causal", config(pad_token_id=9), (0, 0, None), r"config.json pads with 9 .*, a word"),
    ("causal", begins, (0, 0, None), "adds 0 .* to every text; sources are read with it"),
    ("t5", other_eos, (160, 0, 0), "config.json names 1 and generation_config.json names 1; 160 .*im_end"),
    ("t5", config(decoder_start_token_id=...), (1, 0, 0), "no decoder start token; generation_config.json's 0 .<pad>."),
    (
        "t5",
        both(config(decoder_start_token_id=None), generation(decoder_start_token_id=...)),
        (1, 0, 0),
        "no decoder start token; the padding, as T5s have it, 0 .<pad>. is taken",
    ),
]


@pytest.mark.parametrize(("kind", "change", "ids", "said"), ODD)
def test_what_is_only_odd_is_settled_and_said(
    tmp_path: Path, kind: str, change: Change, ids: tuple[int, int, int | None], said: str
) -> None:
    directory = written(tmp_path / "odd", kind)
    if change is other_eos and kind == "causal":  # GPT-Neo names no padding: its end of sequence stands in
        config(pad_token_id=None)(directory)
    assert remarks(directory) == ()
    change(directory)
    assert any(re.search(said, remark) for remark in remarks(directory)), remarks(directory)
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, tokenizer=tokenizer)
    believed = model.config.eos_token_id, model.config.pad_token_id
    assert (*believed, getattr(model.config, "decoder_start_token_id", None)) == ids
    assert tokenizer.eos_token_id == ids[0]
    assert tokenizer.decode([ids[0], ids[1]], skip_special_tokens=True) == ""
    assert TokenRows.encode(tokenizer, ["the cat"], 50).flat.tolist()[-1] == ids[0]
    save_model(model, tokenizer, tmp_path / "saved")
    if change is not begins:
        assert remarks(tmp_path / "saved") == ()


SEVERAL: list[tuple[str, Change, tuple[int, ...], str]] = [
    ("causal", config(eos_token_id=[0, 5]), (0, 5), ""),
    ("causal", generation(eos_token_id=[7, 0]), (0, 7), ""),
    ("causal", both(config(eos_token_id=[0, 5]), generation(eos_token_id=[7, 0])), (0, 5, 7), ""),
    ("causal", config(eos_token_id=[4, 5]), (0, 4, 5), r"config.json names \[4, 5\]; 0 .*, the tokenizer's, is taken"),
    ("causal", both(no_eos, config(eos_token_id=[4, 5])), (4, 5), "the tokenizer names none; 4"),
    ("t5", config(eos_token_id=[5, 1]), (1, 5), ""),
]


@pytest.mark.parametrize(("kind", "change", "ends", "said"), SEVERAL)
def test_what_is_written_ends_in_any_of_several(
    tmp_path: Path, kind: str, change: Change, ends: tuple[int, ...], said: str
) -> None:
    directory = written(tmp_path / "several", kind)
    change(directory)
    assert [re.search(said, remark) is not None for remark in remarks(directory)] == [True] * bool(said)
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, tokenizer=tokenizer)
    assert tuple(model.config.eos_token_id) == ends
    assert TokenRows.targets(tokenizer, ["the cat"], 50).flat.tolist()[-1] == ends[0]
    save_model(model, tokenizer, tmp_path / "saved")
    assert tuple(load_model(tmp_path / "saved").config.eos_token_id) == ends


REFUSED: list[tuple[str, Change, str]] = [
    ("causal", outgrown, "tokenizer has 321 tokens, and the embedding rows for 320: 1 have none\nresize"),
    ("t5", outgrown, "tokenizer has 193 tokens, and the embedding rows for 192: 1 have none\nresize"),
    (
        "causal",
        both(no_eos, config(eos_token_id=None), generation(eos_token_id=...)),
        "no end of sequence, neither in config.json nor in its tokenizer\nset",
    ),
    ("causal", generation(eos_token_id=[0, 999]), "its end of sequence is 999, and the embedding has 320 rows"),
    ("causal", both(no_eos, config(eos_token_id=310)), "310 of config.json is no token of its tokenizer"),
    ("t5", config(decoder_start_token_id=400), "decoder start token is 400, and the embedding has 192 rows"),
    (
        "t5",
        both(
            config(decoder_start_token_id=None, pad_token_id=None),
            generation(decoder_start_token_id=..., pad_token_id=...),
        ),
        "neither a decoder start token nor a padding\nset decoder_start",
    ),
]


@pytest.mark.parametrize(("kind", "change", "said"), REFUSED)
def test_what_cannot_work_is_refused_in_two_lines(tmp_path: Path, kind: str, change: Change, said: str) -> None:
    directory = written(tmp_path, kind)
    change(directory)
    with pytest.raises(ValueError, match=said) as refused:
        remarks(directory)
    assert len(str(refused.value).split("\n")) == 2
    with pytest.raises(ValueError, match=said):
        load_model(directory, tokenizer=load_tokenizer(directory))


def test_a_described_t5_ends_as_its_teachers_tokenizer_does() -> None:
    model = build_model(T5Shape(d_model=8, d_kv=4, d_ff=8, num_heads=2), 20, 0, eos_id=7)
    assert (model.config.eos_token_id, model.config.decoder_start_token_id) == (7, 0)


def test_one_vocabulary_with_two_ends_is_refused(tmp_path: Path) -> None:
    ours, theirs = load_tokenizer(write_causal(tmp_path / "a")), load_tokenizer(write_causal(tmp_path / "b"))
    check_same_tokenizer(ours, theirs)
    theirs.eos_token = theirs.convert_ids_to_tokens(5)
    assert ours.get_vocab() == theirs.get_vocab()
    with pytest.raises(ValueError, match=r"end their texts differently: in '<.endoftext.>' and .*\ngive both"):
        check_same_tokenizer(ours, theirs)


def test_targets_have_nothing_in_front(tmp_path: Path) -> None:
    plain, odd = load_tokenizer(write_causal(tmp_path / "a")), write_causal(tmp_path / "b")
    begins(odd)
    rows = [TokenRows.targets(each, ["the cat", "", "the cat sat"], 4) for each in (plain, load_tokenizer(odd))]
    assert rows[0].flat.tolist() == rows[1].flat.tolist()
    assert rows[0].flat.tolist() == TokenRows.encode(plain, ["the cat", "", "the cat sat"], 4).flat.tolist()


def test_ids_with_holes_have_rows_up_to_the_last(tmp_path: Path) -> None:
    class Holes:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 1, "z": 9}

    assert vocabulary_size(Holes()) == 10
