"""Errors as people read them: what is wrong in one line, then what to do where the error says so."""


def explain(error: BaseException) -> str:
    """The text of a user's mistake, or of what the system refused."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}{f': {error.filename}' if error.filename else ''}"
    return "\n".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
