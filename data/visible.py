"""What of a text can be seen: byte order marks go, and what is invisible makes no text and no difference.

Three questions, three answers. What is kept of a text: all but byte order marks. Is a text empty: it is where nothing
in it shows. Are two texts the same: without what never shows, in composed characters.
Source: Unicode 16, Default_Ignorable_Code_Point.
"""

from __future__ import annotations

import re
import unicodedata

BYTE_ORDER_MARK = "\ufeff"  # elsewhere than at a file's start: a zero-width space that Unicode has deprecated since 3.2

# Neither seen nor seen by what is beside it: soft hyphen, grapheme joiner, zero-width space, word joiner, the marks and
# embeddings of writing direction, mathematical invisibles, shorthand and musical format controls
_NEVER_SEEN = (
    "\u00ad\u034f\u061c\u17b4\u17b5\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff0-\ufff8"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
# Seen in their neighbours, so that they are text but make none by themselves: zero-width joiner and non-joiner
# (Persian, Indic scripts, emoji), variation selectors, tags (flags), the blanks among letters: Hangul's, Braille's
_SEEN_IN_OTHERS = "\u115f\u1160\u180b-\u180d\u180f\u200c\u200d\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff"
_INVISIBLE = re.compile(f"[{_NEVER_SEEN}]")
_BLANK = re.compile(f"[{_NEVER_SEEN}{_SEEN_IN_OTHERS}\\s]*")


def without_marks(text: str) -> str:
    """The text without byte order marks, wherever they are: files joined end to end have one in their middle."""
    return text.replace(BYTE_ORDER_MARK, "")


def is_blank(text: str) -> bool:
    """Whether nothing in a text shows: it has only white space of any kind and invisible characters, or none at all."""
    return _BLANK.fullmatch(text) is not None


def comparable(text: str) -> str:
    """What two texts that look the same have in common: invisible characters left out, characters composed (NFC).

    Joiners, variation selectors and tags stay: they change what is seen of the letters beside them.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
