"""A model that exists is no artifact of ours: a stage notes which one it is, and where."""

import json

from kd_core.models import ModelSettings, directory_hash, load_tokenizer
from tasks.stage import Build


def refer(build: Build, settings: ModelSettings) -> None:
    """Write down which model this is. Its tokenizer is loaded, so that a wrong name fails here and not after hours."""
    directory = settings.directory
    name = settings.name if directory is None else str(directory.resolve())
    assert name is not None  # the settings' own check
    load_tokenizer(name, settings.revision)
    content = None if directory is None else directory_hash(directory)
    record = {"name": name, "revision": settings.revision, "dtype": settings.dtype, "content": content}
    (build.dir / "reference.json").write_text(json.dumps(record, indent=2))
    build.record(model=str(name))
