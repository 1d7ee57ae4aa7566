"""Which commit of the Hugging Face hub a model's name stands for, so that a branch that moves is another model."""

import re
from functools import cache
from pathlib import Path

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_SECONDS = 10.0


def is_commit(revision: str | None) -> bool:
    """Whether a revision can never mean anything else."""
    return revision is not None and COMMIT.fullmatch(revision) is not None


@cache
def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that a hub id with a branch or tag (None: the main branch) is at; asked once a process.

    By the hub where it can be reached, else by what was downloaded last; None if neither knows. A commit is itself.
    """
    if is_commit(revision):
        return revision
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE:
        try:
            found: str | None = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_SECONDS).sha
            return found
        except Exception:  # no network, no such model, no right to see it: loading will say which, with what to do
            pass
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None
