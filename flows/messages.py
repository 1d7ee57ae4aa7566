"""Errors as people read them: what is wrong in one line, then what to do where the error says so."""

import errno

LONGEST = 2000  # characters of a line that are shown: a path or a prompt may be any length
_NO_ACCESS = "this user may not: give it access (chmod, chown), or name another place"


def explain(error: BaseException) -> str:
    """The text of a user's mistake, or of what the system refused."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror.lower()}{f': {error.filename}' if error.filename else ''}"
        return _cut(text) + (f"\n{_NO_ACCESS}" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else "")
    return "\n".join(_cut(line.strip()) for line in str(error).splitlines() if line.strip()) or type(error).__name__


def why_stopped(error: Exception) -> str | None:
    """What stopped a command where that is no fault of the program's: memory, or input nested without end."""
    said = _cut(" ".join(str(error).split())) or type(error).__name__
    # torch has a class of its own for a GPU's memory, and none for the machine's
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in said:
        return f"not enough memory: {said}\nlower what was raised last: batch, lengths, sizes of a model, resamples"
    if isinstance(error, RecursionError):
        return "a setting or a file is nested too deep\ngive it flat: settings are four levels deep at most"
    return None


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}… ({len(line):,} characters)"
