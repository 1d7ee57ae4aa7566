"""A run's student as a directory of its own: the model, its tokenizer, and a card that says how it came about."""

import os
import shutil
from pathlib import Path

from tasks.export.model_family import family_of
from tasks.export.pairs_card import pairs_card
from tasks.export.text_card import text_card
from tasks.store.artifacts import Artifact, Store, StoreError
from tasks.store.files import file_hash, sync
from tasks.store.runs import RunRecord

STUDENT_STAGES = (
    "dagger_train",
    "llmr",
    "divergence",
    "minillm",
    "seqkd",
    "pre_distill",
)  # the last one that a run has made its student


def export_run(store: Store, record: RunRecord, directory: Path) -> str:
    """Write `directory`: all of it, or nothing. Returns the class of transformers that loads it.

    Raises StoreError for a run that is not completed, a student that is gone or damaged, a directory that holds
    something, and a disk that is full.
    """
    artifact, target = _student(store, record), directory.expanduser().resolve()
    with store.try_lock(artifact, shared=True):  # so that gc leaves it alone meanwhile
        _write(store, record, artifact, directory, target)
    return family_of(target).auto_class


def _write(store: Store, record: RunRecord, artifact: Artifact, directory: Path, target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise StoreError(f"{directory} is there already and not empty\ngive the name of a new directory")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        _copy_model(artifact, partial)
        card = text_card if artifact.stage == "dagger_train" else pairs_card
        (partial / "README.md").write_text(card(store, record, artifact, partial), encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"cannot write {directory}: {reason}\nnothing was kept; give another place") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _student(store: Store, record: RunRecord) -> Artifact:
    """The artifact of the run's last student. Raises StoreError if there is none, or not a whole one."""
    if record.status != "completed":
        advice = (
            "wait for its end" if record.status == "running" else f"`distill resume {record.run_id}` goes on with it"
        )
        raise StoreError(f"{record.run_id} has no finished student: it is {record.status}\n{advice}")
    if any(each.cell for each in record.stages):
        raise StoreError(f"{record.run_id} is a comparison of many students\nrun the one that you want by itself")
    keys = {each.stage: each.key for each in record.stages}  # of several rounds, the last
    stage = next((stage for stage in STUDENT_STAGES if stage in keys), None)
    if stage is None:
        raise StoreError(
            f"{record.run_id} trained no student: its stages are {', '.join(keys) or 'none'}\nexport another run"
        )
    artifact = store.artifact(stage, keys[stage])
    damage = store.damage(artifact) if artifact.path.exists() else f"{artifact.path} was deleted"
    if damage:
        raise StoreError(f"the student of {record.run_id} cannot be exported: {damage}\n{_rebuild(record)}")
    return artifact


def _copy_model(artifact: Artifact, directory: Path) -> None:
    """Copy model/, each file checked against what it was when it was made; an adapter is merged with its base."""
    if (artifact.path / "adapter").is_dir():
        from tasks.compute.models import save_merged

        save_merged(artifact, directory)
    for name, known in artifact.manifest().files.items():
        if not name.startswith("model/"):
            continue
        copy = directory / name.removeprefix("model/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, copy)
        if file_hash(copy) != known.sha256:
            raise StoreError(
                f"{artifact.path / name} is not what it was when it was made\n"
                "`distill verify` lists what is damaged; the next run builds it anew"
            )


def _rebuild(record: RunRecord) -> str:
    return f"`distill run {record.name}`, with what was set for this run, builds it again"
