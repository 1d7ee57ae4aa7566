"""The prompt around a source. What is too long is cut in the source, never in the template around it.

T template tokens, of the prompt around an empty source (with its end of sequence, where the row has one). `max_tokens`
is the budget of the source as a bare row has it, its end of sequence included; a template's tokens come on top. So a
wrapped row has at most `max_tokens - 1 + T` tokens, and teacher and student read the same text. [ours]

A row that fits is tokenised as a whole: words may grow together with those of the template. One that does not fit is
wrapped anew around fewer of the source's own tokens, and tokenised as a whole again, until it fits.
"""

from collections.abc import Sequence
from typing import Any

from kd_core.lengths import require_length
from kd_core.models.token_rows import TokenRows, token_lists

PLACEHOLDER = "{source}"


def wrapped_rows(
    tokenizer: Any, prompt: str, sources: Sequence[str], max_tokens: int, *, ends: bool = True
) -> TokenRows:
    """The prompt around each source, as ids. See above for what is cut.

    Raises ValueError for a tokenizer that cannot say which characters a token stands for, and for a length below 1.
    """
    require_length("max_source_tokens", max_tokens)
    if prompt == PLACEHOLDER:
        return TokenRows.encode(tokenizer, sources, max_tokens, ends=ends)

    def wrapped(texts: Sequence[str]) -> list[list[int]]:
        return token_lists(tokenizer, apply_prompt(prompt, texts), ends=ends)

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
