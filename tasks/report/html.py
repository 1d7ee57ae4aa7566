"""HTML that is safe by construction: what is not `Html` is escaped, and what could fool a reader is made visible.

    tag("p", {"class": "note"}, "1 < 2, ", tag("b", "always"))   # <p class="note">1 &lt; 2, <b>always</b></p>

What models write is hostile input: it may hold markup, control characters, and marks that reorder the text around them.
"""

import html
from collections.abc import Iterable, Mapping
from typing import Any

VOID = frozenset({"meta", "link", "input", "br", "hr"})
DRAWN = frozenset({"path", "line", "rect", "circle", "polygon"})  # SVG elements, empty unless they have a <title>
REPLACEMENT = 0xFFFD
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}  # ␀ … ␡
_SPOILT = dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], REPLACEMENT)
_REORDERING = {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_VISIBLE: dict[int, int | str] = {**_CONTROLS, **_SPOILT, **_REORDERING}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(value: object) -> Html:
    """A value as HTML text; `Html` passes as it is."""
    return value if isinstance(value, Html) else Html(html.escape(visible(str(value))))


def visible(text: str) -> str:
    """Control characters as their pictures, bidirectional overrides by their number, lone surrogates replaced."""
    return text.translate(_VISIBLE)


def tag(name: str, *content: object) -> Html:
    """An element: its attributes are the mappings among `content`, its children the rest, in order.

    A child may be None (left out), a list or tuple (its members), `Html`, or anything else, which is escaped. An
    attribute that is None or False is left out, one that is True stands alone, all others are escaped.
    """
    attributes: dict[str, Any] = {}
    children: list[str] = []
    for part in content:
        if isinstance(part, Mapping):
            attributes |= part
        else:
            children.append(join(part))
    head = name + "".join(_attribute(key, value) for key, value in attributes.items())
    inner = "".join(children)
    if name in VOID:
        return Html(f"<{head}>")
    if name in DRAWN and not inner:
        return Html(f"<{head}/>")
    return Html(f"<{head}>{inner}</{name}>")


def join(part: object) -> Html:
    """Children one after another."""
    if part is None:
        return Html("")
    if isinstance(part, str):
        return escape(part)
    if isinstance(part, Iterable):
        return Html("".join(join(each) for each in part))
    return escape(part)


def quoted(text: str) -> Html:
    """A text from outside, isolated from the direction of what stands around it."""
    return tag("bdi", text)


def shortened(text: str, limit: int) -> tuple[str, int]:
    """The text's first characters, and how many were left out."""
    return (text, 0) if len(text) <= limit else (text[:limit], len(text) - limit)


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(visible(str(value)))}"'
