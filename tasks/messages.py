"""Errors in one line."""

import os
import re

SECRETS = re.compile(  # whoever's they are: user and password in an address, and what is called a key
    r"(?<=://)[^/\s]+@|(?<=bearer )\S+|(?:(?<=token=)|(?<=key=)|(?<=secret=)|(?<=password=))[^&\s]+", re.IGNORECASE
)
SHORTEST_SECRET = 8  # characters: "none" is no secret, and hiding it would spoil texts that hold the word


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def without_secrets(text: str) -> str:
    """A text of somebody else's without the keys in our environment, and without what addresses hold of them."""
    for name, given in os.environ.items():
        value = given.strip()
        if re.search("KEY|TOKEN|SECRET|PASSWORD", name):
            for form in (value, repr(value)[1:-1], *value.split()):  # of two lines, an error quotes both or has one
                if len(form) >= SHORTEST_SECRET:
                    text = text.replace(form, "[hidden]")
    return SECRETS.sub("[hidden]", text)
