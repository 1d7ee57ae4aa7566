"""Where an endpoint is, and the key that it is asked with. The key is in no setting, no record and no message."""

import ipaddress
import os
from urllib.parse import urlsplit


def checked_url(url: str, name: str, key_variable: str) -> str:
    """The URL without a slash at its end. What it holds is never repeated in an error: it may be a secret."""
    try:
        parts = urlsplit(url.strip())
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{name} must be a URL such as http://localhost:8000/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(f"{name} must hold no user, password, query or fragment\nthe key goes into {key_variable}")
    if parts.path.rstrip("/").endswith("/completions"):
        raise ValueError(f"{name} must end before /completions and /chat/completions, usually in /v1")
    return parts.geturl().rstrip("/")


def api_key(who: str, url: str, variable: str) -> str | None:
    """The key for an endpoint, or None where the environment has none and none is needed.

    who: as it is called in messages. Raises ValueError, which never repeats it, if it is missing or cannot be one.
    """
    key = os.environ.get(variable) or None
    if key is None and not _is_near(url):
        raise ValueError(f"{who} at {url} needs a key\nset {variable} (to any word if it needs none)")
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"{variable} holds a space, a line break or a letter that no key has\nset it anew")
    return key


def _is_near(url: str) -> bool:
    """Whether the host is this machine or in a private network, where endpoints commonly need no key."""
    host = urlsplit(url).hostname or ""
    if ("." not in host and ":" not in host) or host.endswith(".localhost"):
        return True  # a name without a domain is of this network
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private
