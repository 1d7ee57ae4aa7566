"""What others say in errors is printed and logged without secrets."""

from __future__ import annotations

import pytest

from tasks.messages import without_secrets

TWO = "hf_first_one\nhf_second_one"
KEY = "one\\two'three"


@pytest.mark.parametrize(
    "said", [f"b'Bearer {TWO!r}'", f"no header {TWO!r}", f"{TWO}, no", "the first line is hf_first_one"]
)
def test_a_key_of_the_environment_is_hidden_however_it_is_quoted(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TWO}\n")
    assert "first_one" not in without_secrets(said)
    assert "second_one" not in without_secrets(said)


def test_a_key_with_quotes_and_backslashes_is_hidden_where_it_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", KEY)
    assert without_secrets(f"no header {[KEY]}") == 'no header ["[hidden]"]'


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("http://u:p@host/a@b", "http://[hidden]host/a@b"),
        ("http://u:p@ss@host/", "http://[hidden]host/"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [hidden]"),
        ("authorization: bearer abc", "authorization: bearer [hidden]"),
        ("/a?token=abc&b=1", "/a?token=[hidden]&b=1"),
        ("/a?API_KEY=abc&Password=de f", "/a?API_KEY=[hidden]&Password=[hidden] f"),
        ("a token of the bearer, and keys", "a token of the bearer, and keys"),
    ],
)
def test_what_is_said_to_be_a_secret_is_hidden_whoever_it_is_of(said: str, left: str) -> None:
    assert without_secrets(said) == left
