"""A chat around a source, in the model's own template: what is read, what is cut, what ends a response."""

import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from kd_core.models.loading import load_model, load_tokenizer
from kd_core.models.prompts import Chat, Prompts, rendered, response_end, wrapped_rows
from kd_core.models.token_rows import TokenRows
from tests.tasks.tiny_models import TEXTS, write_chat, write_llama

CHAT = Chat(system="reply", user="say {source} now")
LONG = " ".join(TEXTS[:9])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def tokenizer(directory: Path) -> Any:
    return load_tokenizer(directory)


def lists(rows: TokenRows) -> list[list[int]]:
    return [part.tolist() for part in rows.flat.split(rows.lengths.tolist())]


@pytest.mark.parametrize("chat", [Chat(), CHAT, Chat(user="{source}?", options={"brief": True})])
def test_a_source_is_read_as_the_template_writes_it(tokenizer: Any, chat: Chat) -> None:
    sources = ["the cat", "", "a {source}, {{ x }} <b>", "two\nlines"]
    stock = tokenizer.apply_chat_template(
        [chat.messages(each) for each in sources], add_generation_prompt=True, return_dict=False, **chat.options
    )
    rows = lists(wrapped_rows(tokenizer, chat, sources, 500))
    assert rows == stock
    begin = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>"])
    assert all(row[:2] == begin and row.count(begin[0]) == 1 for row in rows)  # no second begin


def test_a_template_brings_its_own_begin_and_the_tokenizer_adds_no_second(tokenizer: Any) -> None:
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", begin)]
    )
    (bare,) = lists(wrapped_rows(tokenizer, "say {source} now", ["the cat"], 50, ends=False))
    assert bare.count(begin) == 1  # without a chat it is the tokenizer that begins
    rows = lists(wrapped_rows(tokenizer, CHAT, ["the cat", LONG], 12))
    assert [row.count(begin) for row in rows] == [1, 1]


def test_the_budget_is_for_the_source_and_the_template_is_never_cut(tokenizer: Any) -> None:
    (row,) = lists(wrapped_rows(tokenizer, CHAT, [LONG], 12))
    text = tokenizer.decode(row)
    before, after = rendered(tokenizer, CHAT).split("{source}")
    assert text.startswith(before)
    assert text.endswith(after)
    source = text.removeprefix(before).removesuffix(after)
    assert source
    assert LONG.startswith(source)
    assert len(row) <= 12 - 1 + len(lists(wrapped_rows(tokenizer, CHAT, [""], 12))[0])


def test_a_response_ends_as_a_turn_of_the_chat_does(tokenizer: Any, directory: Path) -> None:
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert response_end(tokenizer, "say {source}") == tokenizer.eos_token_id != turn_end
    assert response_end(tokenizer, CHAT) == turn_end
    assert lists(TokenRows.targets(tokenizer, ["the cat"], 9, turn_end))[0][-1] == turn_end
    assert turn_end in load_model(directory, tokenizer=tokenizer).config.eos_token_id


REFUSED = [
    (None, CHAT, "has no chat template, and is to read a chat\ngive a prompt"),
    ("{{ raise_exception('System role not supported') }}", CHAT, "refuses the chat: System role not supported\nchange"),
    ("{{ nonsense( }}", CHAT, "refuses the chat: .*\nchange chat"),
    ("hello", CHAT, "does not pass on the source as it is\ngive a prompt"),
    ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", CHAT, "does not pass on the source as it is"),
    ("{{ messages[-1]['content'] | e }}", CHAT, "does not pass on the source as it is"),
    ("{% for m in messages %}{{ m['content'] * 2 }}{% endfor %}", CHAT, "does not pass on the source as it is"),
]


@pytest.mark.parametrize(("template", "chat", "said"), REFUSED)
def test_a_template_that_cannot_serve_is_refused_in_two_lines(
    tokenizer: Any, template: str | None, chat: Chat, said: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=said) as refused:
        wrapped_rows(tokenizer, chat, ["the cat"], 20)
    assert len(str(refused.value).split("\n")) == 2
    assert str(tokenizer.name_or_path) in str(refused.value)


def test_what_a_chat_must_hold() -> None:
    with pytest.raises(ValueError, match=re.escape("chat.user must hold {source} exactly once, got 'hello'")):
        Chat(user="hello")
    with pytest.raises(ValueError, match=re.escape("cannot hold {source}")):
        Chat(system="about {source}")


def test_a_student_reads_the_source_or_what_its_teacher_does_unless_it_is_told() -> None:
    assert Prompts(CHAT).of_student(is_encoder_decoder=True) == "{source}"
    assert Prompts(CHAT).of_student(is_encoder_decoder=False) == CHAT
    assert Prompts(CHAT, "say {source}").of_student(is_encoder_decoder=False) == "say {source}"
    assert Prompts("say {source}").identity() == "say {source}"
    assert Prompts("say {source}", CHAT).identity() == {"teacher": "say {source}", "student": CHAT}


def test_a_model_that_does_not_chat_says_so_by_its_name(tmp_path: Path) -> None:
    plain = load_tokenizer(write_llama(tmp_path / "plain"))
    with pytest.raises(ValueError, match="plain has no chat template"):
        rendered(plain, CHAT)
