"""Words in every script, and what tokenizers made for English make of the others.

ROUGE's own tokenizer reads a to z and 0 to 9: of a Russian text with one digit it sees the digit. Wordpunct and
sacreBLEU's 13a read everything, but a text without spaces is one word to them, and to wordpunct a vowel sign of
Devanagari is a word of its own. A metric says so in its note where that concerns a twentieth of the references or more.
"""

import unicodedata
from collections.abc import Sequence

import regex

SUBSTANTIAL = 5.0  # per cent of the references' words, or letters, from which on a note says what is lost

# scripts that are written without spaces between words; Line_Break=SA: Thai, Lao, Khmer, Myanmar and their neighbours
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー[\p{Line_Break=SA}&&\p{L}]"
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+", regex.V1)
_LETTER, _MARK, _UNSPACED_LETTER = (
    regex.compile(each, regex.V1) for each in (r"[\p{L}\p{M}]", r"\p{M}", rf"[{_UNSPACED}]")
)
_JOINERS = str.maketrans("", "", "\u200c\u200d")  # invisible, inside words of Persian and of India's scripts


def unicode_words(text: str) -> list[str]:
    """Lower-cased runs of letters, marks and digits; of scripts without spaces between words, each character.

    "2 кота, ёлка" -> ["2", "кота", "ёлка"]; "很 好吗" -> ["很", "好", "吗"]. Composed and decomposed accents are the
    same (NFC). On ASCII, the same words as rouge-score before stemming. [ours]
    """
    found: list[str] = _WORD.findall(unicodedata.normalize("NFC", text).lower().translate(_JOINERS))
    return found


def unread_by_ascii(texts: Sequence[str]) -> float:
    """The share of words that hold a letter, mark or digit outside a to z and 0 to 9, in per cent; 0 without words."""
    if all(text.isascii() for text in texts):
        return 0.0
    words = [word for text in texts for word in unicode_words(text)]
    return 100 * sum(not word.isascii() for word in words) / len(words) if words else 0.0


def unspaced_remark(texts: Sequence[str], *, marks_are_words: bool = False) -> str:
    """What to say of scripts without spaces, and of words cut at their marks; empty where neither is substantial."""
    if all(text.isascii() for text in texts):
        return ""
    letters, unspaced, marks = (
        sum(len(pattern.findall(text)) for text in texts) for pattern in (_LETTER, _UNSPACED_LETTER, _MARK)
    )
    remarks = []
    if unspaced * 100 >= SUBSTANTIAL * letters > 0:
        share = f"{100 * unspaced / letters:.0f} % of the references' letters"
        remarks.append(f"{share} are of scripts without spaces, of which a whole run is one word here")
    if marks_are_words and marks * 100 >= SUBSTANTIAL * letters > 0:
        remarks.append(
            f"{100 * marks / letters:.0f} % of the references' letters are marks, at which words are cut here"
        )
    return "; ".join(remarks)
