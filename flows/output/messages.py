"""Error messages for people: one line that says what is wrong, then what to do where that is known."""

import errno
import os
import re

LONGEST = 2000  # characters of a line that are shown: a path or a prompt may be any length
FULL = (errno.ENOSPC, errno.EDQUOT)
MAKE_ROOM = "what is finished is kept: make room there (distill gc lists what no run needs), and run it again"
_NO_ACCESS = "this user may not: give it access (chmod, chown), or name another place"
_ADVICE = {
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EROFS: "nobody may write there: mount it for writing, or name another place",
}


def explain(error: BaseException) -> str:
    """The message of an error: a user's mistake, or what the system refused."""
    stopped = why_stopped(error)
    if stopped is not None:
        return stopped
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror.lower()}{f': {error.filename}' if error.filename else ''}"
        advice = _ADVICE.get(error.errno or 0)
        return _cut(text) + (f"\n{advice}" if advice else "")
    return "\n".join(_cut(line.strip()) for line in str(error).splitlines() if line.strip()) or type(error).__name__


def is_explained(error: BaseException) -> bool:
    """Whether `explain` says all that is needed; else it is a bug, and wants a traceback."""
    return isinstance(error, ValueError | OSError) or why_stopped(error) is not None


def why_stopped(error: BaseException) -> str | None:
    """The message where the machine or the input's nesting is at fault: a full disk, memory, recursion. Else None."""
    full = _full_disk(error)
    if full:
        return f"{full}\n{MAKE_ROOM}"
    said = _cut(" ".join(str(error).split())) or type(error).__name__
    # torch has a class of its own for a GPU's memory, and none for the machine's
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in said:
        return f"not enough memory: {said}\nlower what was raised last: batch, lengths, sizes of a model, resamples"
    if isinstance(error, RecursionError):
        return "a setting or a file is nested too deep\ngive it flat: settings are four levels deep at most"
    return None


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}… ({len(line):,} characters)"


def _full_disk(error: BaseException) -> str | None:
    """The system's message and the file, if `error` or a cause of it is a full disk; else None."""
    met: BaseException | None = error
    while met is not None:
        for number in FULL:
            if _says(met, number):
                path = getattr(met, "filename", None) or next(iter(re.findall(r'"(/[^"\n]+)"', str(met))), None)
                return f"{os.strerror(number).lower()}: {path or os.environ.get('DISTILL_HOME') or 'outputs'}"
        met = met.__cause__ or met.__context__
    return None


def _says(error: BaseException, number: int) -> bool:
    """Whether an error means this errno; safetensors and DuckDB raise their own, with the system's words in them."""
    said = str(error)
    by_numpy = number == errno.ENOSPC and re.fullmatch(r"\d+ requested and \d+ written", said) is not None
    return by_numpy or getattr(error, "errno", None) == number or os.strerror(number).lower() in said.lower()
