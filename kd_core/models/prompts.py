"""The prompt around a source: a text, or a chat in the model's own template. What is too long is cut in the source.

T template tokens, of the prompt around an empty source (with its end of sequence, where the row has one). `max_tokens`
is the budget of the source as a bare row has it, its end of sequence included; a template's tokens come on top. So a
wrapped row has at most `max_tokens - 1 + T` tokens, and teacher and student read the same text. [ours]

A row that fits is tokenised as a whole: words may grow together with those of the template. One that does not fit is
wrapped anew around fewer of the source's own tokens, and tokenised as a whole again, until it fits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kd_core.lengths import require_length
from kd_core.models.token_rows import TokenRows, token_lists

PLACEHOLDER = "{source}"
PROBE = "Ä source of\n\ntwo lines <b>"  # what a template that passes on what it is given leaves as it is
RESPONSE = "The response."


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One turn of a chat around a source, written by the model's own chat template; the response is what follows."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    user: str = PLACEHOLDER  # what the user says; {source} stands for the input
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # what the template knows besides: enable_thinking: false

    def __post_init__(self) -> None:
        if self.user.count(PLACEHOLDER) != 1:
            raise ValueError(f"chat.user must hold {PLACEHOLDER} exactly once, got {self.user!r}")
        if self.system is not None and PLACEHOLDER in self.system:
            raise ValueError(f"chat.system is the same for every source, and cannot hold {PLACEHOLDER}")

    def messages(self, source: str = PLACEHOLDER) -> list[dict[str, str]]:
        """What is said before the response."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.user.replace(PLACEHOLDER, source)}]


Prompt = str | Chat


@dataclass(frozen=True)
class Prompts:
    """What teacher and student read of a source."""

    teacher: Prompt
    student: Prompt | None = None  # None: the bare source (encoder–decoders), or what the teacher reads (all others)

    def identity(self) -> object:
        """Both in a key; the teacher's alone where the student's was not chosen."""
        return self.teacher if self.student is None else {"teacher": self.teacher, "student": self.student}

    def of_student(self, *, is_encoder_decoder: bool) -> Prompt:
        """What a student of this kind reads."""
        if self.student is not None:
            return self.student
        return PLACEHOLDER if is_encoder_decoder else self.teacher


def check_prompt(prompt: str) -> None:
    """Raise ValueError for a prompt without a place for the source, or with several."""
    if prompt.count(PLACEHOLDER) != 1:
        raise ValueError(f"prompt must hold {PLACEHOLDER} exactly once, got {prompt!r}")


def wrapped_rows(
    tokenizer: Any, prompt: Prompt, sources: Sequence[str], max_tokens: int, *, ends: bool = True
) -> TokenRows:
    """The prompt around each source, as ids. See above for what is cut.

    ends: whether rows end in the end of sequence; a chat's end as its template has it, which brings a begin of its own.
    Raises ValueError for a tokenizer that cannot say which characters a token stands for, one without a chat template
    where a chat is asked for, and for a length below 1.
    """
    require_length("max_source_tokens", max_tokens)
    if prompt == PLACEHOLDER:
        return TokenRows.encode(tokenizer, sources, max_tokens, ends=ends)
    template = rendered(tokenizer, prompt) if isinstance(prompt, Chat) else prompt

    def wrapped(texts: Sequence[str]) -> list[list[int]]:
        whole = apply_prompt(template, texts)
        if isinstance(prompt, str):
            return token_lists(tokenizer, whole, ends=ends)
        rows: list[list[int]] = tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
        return rows

    rows = wrapped(sources)
    longest = max(max_tokens, max_tokens - 1 + len(wrapped([""])[0]))
    too_long = [number for number, row in enumerate(rows) if len(row) > longest]
    kept = max_tokens - 1  # tokens of each source
    while too_long:
        starts = source_starts(tokenizer, [sources[number] for number in too_long], kept)
        for number, row in zip(too_long, wrapped(starts), strict=True):
            rows[number] = row
        too_long, kept = [number for number in too_long if len(rows[number]) > longest], kept - 1
    return TokenRows.of(rows)


def rendered(tokenizer: Any, chat: Chat) -> str:
    """The text of a chat up to where the response begins, with {source} in it.

    Raises ValueError, in two lines, for a tokenizer without a chat template, and for a template that refuses the chat
    or does not pass on the source as it is.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{_named(tokenizer)} has no chat template, and is to read a chat\n"
            f"give a prompt in place of it (prompt: '… {PLACEHOLDER} …'), or a model that was trained to chat"
        )
    text = _applied(tokenizer, chat, chat.messages())
    as_it_is = apply_prompt(text, [PROBE]) == [_applied(tokenizer, chat, chat.messages(PROBE))]
    if text.count(PLACEHOLDER) != 1 or not as_it_is:
        raise ValueError(
            f"the chat template of {_named(tokenizer)} does not pass on the source as it is\n"
            f"give a prompt in place of it: prompt: '… {PLACEHOLDER} …'"
        )
    return text


def response_end(tokenizer: Any, prompt: Prompt) -> int:
    """The token that ends a response: of a chat what its template writes after one, else the end of sequence."""
    end: int = tokenizer.eos_token_id
    if isinstance(prompt, str):
        return end
    messages = [*prompt.messages(), {"role": "assistant", "content": RESPONSE}]
    after = _applied(tokenizer, prompt, messages, answered=True).rpartition(RESPONSE)[2].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return int(ids[0]) if ids and ids[0] in tokenizer.added_tokens_decoder else end


def _applied(tokenizer: Any, chat: Chat, messages: Sequence[Mapping[str, str]], *, answered: bool = False) -> str:
    """A chat as text. Raises ValueError for whatever the template raises."""
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not answered, **chat.options
        )
    except Exception as error:  # templates are programs, and raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"the chat template of {_named(tokenizer)} refuses the chat: {reason[:200]}\n"
            "change chat.system, chat.user or chat.options to what the template knows"
        ) from None
    return text


def _named(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path) or type(tokenizer).__name__


def apply_prompt(prompt: str, sources: Sequence[str]) -> list[str]:
    """The prompt around each source; braces in a text are left alone."""
    return [prompt.replace(PLACEHOLDER, source) for source in sources]


def source_starts(tokenizer: Any, sources: Sequence[str], num_tokens: int) -> list[str]:
    """The text of each source's first `num_tokens` tokens. A character in several tokens is there whole or not at all.

    Raises ValueError as `wrapped_rows` does.
    """
    if num_tokens <= 0:
        return [""] * len(sources)
    if not tokenizer.is_fast:
        raise ValueError(
            "a source is longer than max_source_tokens, and the tokenizer does not say what text its tokens stand for\n"
            "raise max_source_tokens, or save the tokenizer as tokenizer.json"
        )
    found = tokenizer(list(sources), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        source if len(spans) <= num_tokens else source[: min(spans[num_tokens - 1][1], spans[num_tokens][0])]
        for source, spans in zip(sources, found["offset_mapping"], strict=True)
    ]
