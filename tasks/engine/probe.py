"""Whether a folder can be shared with another process, here or on another node: found out, not hoped for.

with laid_out(root) as folder:       # here: a file, a lock that is held, a file that will be replaced
    look(folder, "0")                # there: what is wrong with it, or None
    torn(folder, ["0"])              # here, meanwhile: whether what is replaced is ever seen half
    unseen(folder, ["0"])            # here, afterwards: what was renamed there and is not seen whole
"""

import fcntl
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SEEN_SECONDS = 90.0  # NFS remembers for 60 s at most what was not there
REPLACED = 200  # times
SIZE = 64 * 1024  # bytes of what is replaced: more than one write of any protocol
CONTENTS = ("a" * SIZE, "b" * SIZE)
PROJECT = Path(__file__).resolve().parents[2]


@contextmanager
def laid_out(root: Path) -> Iterator[Path]:
    """A folder in the store for others to look at, gone afterwards. Its lock is held meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=root))
    try:
        (folder / "here").write_text(folder.name, encoding="ascii")
        with (folder / "lock").open("w", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def look(folder: Path, name: str) -> str | None:
    """What is wrong with the folder as this process sees it, in one clause, or None. Leaves something for `unseen`."""
    try:
        if (folder / "here").read_text(encoding="ascii") != folder.name:
            return "has another folder there"
    except FileNotFoundError:
        return "does not see it"
    except OSError as error:
        return f"cannot read it ({error.strerror})"
    try:
        if not _is_locked(folder / "lock"):
            return "can take a lock that another process holds: flock does not hold"
        value = folder / f"value-{name}"
        for number in range(REPLACED):
            partial = folder / f"{name}.partial"
            partial.write_text(CONTENTS[number % 2], encoding="ascii")
            partial.replace(value)
        made = folder / f"{name}.made"
        made.mkdir()
        (made / "inside").write_text(name, encoding="ascii")
        made.rename(folder / name)
    except OSError as error:
        return f"cannot lock, write or rename in it ({error.strerror})"
    return None


def _is_locked(path: Path) -> bool:
    with path.open("r+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def replaceable(folder: Path, names: Sequence[str]) -> None:
    """Put there what `look` will replace."""
    for name in names:
        (folder / f"value-{name}").write_text(CONTENTS[0], encoding="ascii")


def torn(folder: Path, names: Sequence[str]) -> str | None:
    """The name under which a file that is being replaced was seen half, or not at all, or None."""
    for name in names:
        try:
            if (folder / f"value-{name}").read_text(encoding="ascii") not in CONTENTS:
                return name
        except FileNotFoundError:
            return name
        except OSError:  # NFS: it was replaced while it was read
            continue
    return None


def unseen(folder: Path, names: Sequence[str]) -> str | None:
    """The name under which what was renamed is not seen here, waited for as long as a file system may take, or None."""
    until = time.monotonic() + SEEN_SECONDS
    for name in names:
        inside = folder / name / "inside"
        while not inside.is_file() or inside.read_text(encoding="ascii") != name:
            if time.monotonic() > until:
                return name
            time.sleep(0.05)
            list(folder.iterdir())  # makes NFS look at it anew
    return None


def code_digest() -> str:
    """Hash over our own code as it lies here: workers compute what the driver would have, or they are refused."""
    found = hashlib.sha256()
    for package in ("flows", "tasks", "kd_core", "data"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            found.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()
