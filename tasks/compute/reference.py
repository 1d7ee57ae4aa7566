"""A model that exists already: the stage writes down which one, and makes no copy of what can be read as it is."""

import json
from typing import Any

from kd_core.models.files import is_gguf
from kd_core.models.formats.content import content_hash
from kd_core.models.loading import ModelSettings, load_model, load_tokenizer, read_configs, read_tokenizer, save_model
from kd_core.models.revisions import is_commit
from kd_core.models.special_ids import special_ids
from tasks.compute.completions import EndpointSettings
from tasks.compute.served import probe_once
from tasks.store.stage import Build


def refer(build: Build, settings: ModelSettings) -> None:
    """Write reference.json: which model this is; of a .gguf, model/: itself, in safetensors of the wanted dtype.

    Its tokenizer is loaded, so that a wrong name fails here and not after hours.
    """
    path = settings.path
    if path is not None and is_gguf(path):
        build.progress(0, 1, "reading the .gguf file")
        tokenizer = load_tokenizer(path)
        model = load_model(path, dtype=settings.dtype, tokenizer=tokenizer)
        save_model(model, tokenizer, build.dir / "model")
        build.record(model=path.name, parameters=model.num_parameters())
        return
    record = reference_to(settings)
    load_tokenizer(record["name"], settings.commit)
    remark_on(build, settings)
    (build.dir / "reference.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    build.record(model=str(record["name"]))


def refer_to_served(build: Build, reader: ModelSettings, endpoint: EndpointSettings) -> None:
    """Write reference.json: what a model behind a server is called there, where its tokenizer is, how it answers."""
    record = reference_to(reader) | {"served": endpoint.model}
    tokenizer = load_tokenizer(record["name"], record["revision"])
    record["probe"] = probe_once(endpoint, tokenizer)
    (build.dir / "reference.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    build.record(model=endpoint.model)


def reference_to(settings: ModelSettings) -> dict[str, Any]:
    """Which model a name means now: where it is, and what it must be to be the same one later."""
    path = settings.path
    name = settings.name if path is None else str(path.resolve())
    assert name is not None  # the settings' own check
    content = None if path is None else content_hash(path)
    return {"name": name, "revision": settings.commit, "dtype": settings.dtype, "content": content}


def remark_on(build: Build, settings: ModelSettings) -> None:
    """Warn of a model on the hub that is not held to a commit, and of contradictions between its files.

    For a local directory `check_models` has warned of these before the run started.
    """
    if settings.name is None or settings.path is not None:
        return
    if not is_commit(settings.revision):
        named = f"{settings.name} has no revision" if settings.revision is None else f"{settings.revision} may move"
        known = f"taken at its commit {settings.commit}; pin that as revision"
        unknown = "if it changes on the hub, this artifact will not notice"
        build.warn(f"{named}: {known if is_commit(settings.commit) else unknown}")
    tokenizer, configs = read_tokenizer(settings.name, settings.commit), read_configs(settings.name, settings.commit)
    for remark in special_ids(*configs, tokenizer, settings.name).remarks:
        build.warn(remark)
