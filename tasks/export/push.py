"""An exported model on the Hugging Face hub: private unless it is said to be public.

The token is HF_TOKEN, from the environment and nowhere else; the hub is HF_ENDPOINT, or huggingface.co. Whatever goes
wrong, the directory that was exported stays.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tasks.messages import first_line, without_secrets

NAME = r"(?!.*(--|\.\.))\b[\w.-]+\b/\b[\w.-]{1,96}\b"  # the hub's own rule


def check_push(repository: str) -> None:
    """What can be known before there is anything to push.

    Raises ValueError for no token, for several, and for no user/name.
    """
    if re.fullmatch(NAME, repository) is None:
        raise ValueError(
            f"a model on the hub is called user/name, got {repository!r}\nfor instance: --push ada/student"
        )
    token, advice = _token(), "set HF_TOKEN to one of the hub's that may write"
    if not token:
        raise ValueError(f"nothing can be pushed without a token\n{advice}")
    if re.fullmatch(r"[\x21-\x7e]+", token) is None:
        raise ValueError(f"HF_TOKEN is no token: it has several lines or words, or letters that no token has\n{advice}")


def push(directory: Path, repository: str, *, public: bool) -> str:
    """Make the model on the hub if it is not there, and send all files of `directory`. Returns its address.

    Raises ValueError, naming the directory, if the hub cannot be reached or refuses, and if the model is there already
    and as visible as it should not be.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=_token())
    advice = f"to push it: hf upload {repository} {directory}"
    if not public:  # that would publish it where a public model of this name is there: it heeds no --private then
        advice = "to push it, export it again with --push, into another directory"
    try:
        url = api.create_repo(repository, private=not public, exist_ok=True)
        is_public = not api.model_info(repository).private
        if is_public == public:
            api.upload_folder(repo_id=repository, folder_path=directory, commit_message="distill export")
            return str(url)
        problem = f"{repository} is on the hub already, and it is not {'public' if public else 'private'}"
        advice = "give another name, or change its visibility on the hub"  # uploading heeds no --private there
    except HfHubHTTPError as error:
        problem = _refused(api.endpoint, repository, error)
    except Exception as error:  # the classes of whichever library it speaks HTTP with
        problem = f"the hub at {api.endpoint} cannot be reached: {first_line(error)}"
    raise ValueError(f"{without_secrets(problem)}\n{directory} stays as it was exported; {advice}") from None


def _refused(endpoint: str, repository: str, error: Exception) -> str:
    """An answer of the hub that is no success, in a line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"the hub at {endpoint} does not accept the token in HF_TOKEN (401)"
    if status == 403:
        return f"the hub at {endpoint} does not let this token write to {repository} (403)"
    return f"the hub at {endpoint} answers {status}: {first_line(error)}"


def _token() -> str:
    return os.environ.get("HF_TOKEN", "").strip()
