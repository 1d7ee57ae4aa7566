"""What endpoints have answered, by the hash of the question: what was paid for is never asked again, by any process.

<root>/ab/abcd….json    one answer, whole or not there; the file is its own lock

A file is made empty, locked with flock, asked for, written and synced. A killed process leaves it empty or torn (torn
JSON is no JSON), and the kernel lets go of the lock: the next one asks anew. Two processes that want the same answer at
once ask for it once: the other waits, and reads.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.store.files import read_json, sealed, sync

POLL_SECONDS = 0.1


def content_key(content: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Answers:
    """Answers under one directory, for many threads and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str) -> dict[str, Any] | None:
        """The answer, or None if it is not there, or not whole."""
        try:
            return read_json(self._path(key))
        except (FileNotFoundError, ValueError):
            return None

    def ask_once(self, key: str, ask: Callable[[], dict[str, Any]], wait: Callable[[float], None]) -> None:
        """Make sure that the answer is there: `ask` for it unless it is, or another process gets it first.

        `wait(seconds)` is called while another one asks; it may raise. What `ask` raises leaves nothing behind that
        would be taken for an answer. Raises OSError if the disk is full; an answer is then lost.
        """
        if self.read(key) is not None:
            return
        with self._locked(key, wait) as descriptor:
            if self.read(key) is None:
                content = json.dumps(sealed(ask()), indent=1).encode()
                os.ftruncate(descriptor, 0)
                with os.fdopen(os.dup(descriptor), "wb") as file:
                    file.write(content)
                os.fsync(descriptor)
                sync(self._path(key).parent)

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"

    @contextmanager
    def _locked(self, key: str, wait: Callable[[float], None]) -> Iterator[int]:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    wait(POLL_SECONDS)
            yield descriptor
        finally:
            os.close(descriptor)
