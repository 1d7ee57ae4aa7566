"""Errors in one line."""

import os
import re

SHORTEST_SECRET = 8  # characters: "none" is no secret, and hiding it would spoil texts that hold the word


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def without_secrets(text: str) -> str:
    """A text of somebody else's without the keys in our environment, and without what addresses hold of them."""
    for name, given in os.environ.items():
        value = given.strip()
        if len(value) >= SHORTEST_SECRET and re.search("KEY|TOKEN|SECRET|PASSWORD", name):
            text = text.replace(value, "[hidden]")
    return re.sub(r"(?<=://)[^/@\s]+@|(?<=token=)[^&\s]+", "[hidden]", text)
