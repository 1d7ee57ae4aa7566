"""What is too long is cut in the source, never in the prompt around it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_core.models.loading import load_tokenizer
from kd_core.models.prompts import source_starts, wrapped_rows
from kd_core.models.token_rows import TokenRows
from tests.tasks.tiny_models import write_causal, write_model

PROMPT = "said {source} today"
LONG = "the cat sat on the mat under the tree and the dog ran over the roof of the house " * 3


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "t5": load_tokenizer(write_model(root / "t5", own_head=False)),
        "causal": load_tokenizer(write_causal(root / "causal")),
    }


def lists(rows: TokenRows) -> list[list[int]]:
    return [part.tolist() for part in rows.flat.split(rows.lengths.tolist())]


@pytest.mark.parametrize("kind", ["t5", "causal"])
@pytest.mark.parametrize("ends", [True, False])
def test_a_long_source_leaves_the_prompt_whole(tokenizers: dict[str, Any], kind: str, ends: bool) -> None:
    tokenizer, budget = tokenizers[kind], 12
    row, short = lists(wrapped_rows(tokenizer, PROMPT, [LONG, "the cat"], budget, ends=ends))
    text = tokenizer.decode(row, skip_special_tokens=True)
    assert text.startswith("said ")
    assert text.endswith(" today")
    source = text.removeprefix("said ").removesuffix(" today").strip()
    assert LONG.startswith(source)
    bare = lists(TokenRows.encode(tokenizer, [LONG], budget))[0]
    assert source == tokenizer.decode(bare, skip_special_tokens=True).strip()  # what the student reads
    assert (row[-1] == tokenizer.eos_token_id) is ends
    (template,) = lists(TokenRows.encode(tokenizer, [PROMPT.replace("{source}", "")], 99, ends=ends))
    assert len(row) <= budget - 1 + len(template)
    assert [short] == lists(TokenRows.encode(tokenizer, ["said the cat today"], 99, ends=ends))


@pytest.mark.parametrize("kind", ["t5", "causal"])
def test_what_was_never_cut_has_the_ids_of_the_whole_text(tokenizers: dict[str, Any], kind: str) -> None:
    tokenizer, sources = tokenizers[kind], [LONG[:n] for n in range(1, 60)]
    whole = lists(TokenRows.encode(tokenizer, [PROMPT.replace("{source}", s) for s in sources], 10_000))
    rows = lists(wrapped_rows(tokenizer, PROMPT, sources, 20))
    fitting = [number for number, row in enumerate(whole) if len(row) <= 20]
    assert 5 < len(fitting) < 55
    assert [rows[number] for number in fitting] == [whole[number] for number in fitting]


def test_without_words_of_its_own_a_prompt_is_the_bare_source(tokenizers: dict[str, Any]) -> None:
    for tokenizer in tokenizers.values():
        assert lists(wrapped_rows(tokenizer, "{source}", [LONG, ""], 7)) == lists(
            TokenRows.encode(tokenizer, [LONG, ""], 7)
        )


@given(st.text(max_size=60), st.integers(1, 12), st.sampled_from(["t5", "causal"]), st.booleans())
@settings(max_examples=150)
def test_every_row_fits_whatever_the_text(
    tokenizers: dict[str, Any], source: str, budget: int, kind: str, ends: bool
) -> None:
    tokenizer = tokenizers[kind]
    (row,) = lists(wrapped_rows(tokenizer, PROMPT, [source], budget, ends=ends))
    (template,) = lists(TokenRows.encode(tokenizer, [PROMPT.replace("{source}", "")], 99, ends=ends))
    assert len(row) <= budget - 1 + len(template)
    text = tokenizer.decode(row, skip_special_tokens=True)
    assert text.startswith("said")
    assert text.endswith("today")


def test_a_character_in_several_tokens_is_there_whole_or_not_at_all(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["causal"]
    assert len(tokenizer("€", add_special_tokens=False)["input_ids"]) == 3
    assert [source_starts(tokenizer, ["a€b"], n)[0] for n in range(6)] == ["", "a", "a", "a", "a€", "a€b"]


def test_a_tokenizer_that_knows_no_offsets_is_refused_and_not_guessed_at(tokenizers: dict[str, Any]) -> None:
    class Slow:
        is_fast, eos_token_id = False, 1

        def __call__(self, texts: list[str], **arguments: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    assert lists(wrapped_rows(Slow(), "<{source}>", ["ab"], 3)) == [[60, 97, 98, 62, 1]]
    with pytest.raises(ValueError, match=r"longer than max_source_tokens.*\nraise max_source_tokens"):
        wrapped_rows(Slow(), "<{source}>", ["abc"], 3)
