"""The words that paper-comparable metrics count."""

import re

# A run of letters, digits and underscores, or a run of anything else that is not white space.
WORDPUNCT = re.compile(r"\w+|[^\w\s]+")


def words(text: str) -> list[str]:
    """Lower-cased wordpunct tokens: "Don't!" -> ["don", "'", "t", "!"].

    Source: METHODS.md section 1, [code]: NLTK's wordpunct_tokenize on lower-cased text, as it was when the paper was
    written; since NLTK 3.10 it takes a few rare characters, such as a superscript 2, for punctuation.
    """
    return WORDPUNCT.findall(text.lower())
