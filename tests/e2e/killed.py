"""A program that runs a tiny recipe again and again in one store, each time killed (SIGKILL) at another point.

    python -m tests.e2e.killed RECIPE FOLDER NAME=POINT,… …      (RECIPE: pairs, causal, chat, text or llama)

First an undisturbed run in the store FOLDER/undisturbed/home, then for every NAME one run a POINT and a last one that
ends, in the store FOLDER/NAME/home. A POINT is EVENT:STAGE:COUNT, or flip:STAGE, truncate:STAGE or delete:STAGE, which
spoils the newest file of every kind that the stage's unfinished build has kept. Every run is a fork of this process,
which has imported everything and computed nothing. Prints one JSON line a point: how it ended, what the stage went on
from, what was spoilt.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kd_core.train.llmr
import tasks.store.shards
from flows.catalogue import load_catalogue, override
from flows.distill_outline import OUTLINE
from flows.distill_text_outline import OUTLINE as TEXT_OUTLINE
from flows.outlines import Outline, execute
from flows.settings import validate
from tasks.store.artifacts import Store
from tasks.store.checkpoints import Checkpoints
from tasks.store.files import atomic_write
from tasks.store.progress import NullReporter
from tasks.store.shards import HASH
from tasks.store.stage import Build
from tests.e2e.damage import HOWS, damage
from tests.tasks.tiny_models import write_chat, write_llama
from tests.tasks.tiny_texts import text_parameters

RECIPES = Path(__file__).parent / "prefect.yaml"
CHANGES = [
    "runtime.checkpoint_seconds=0",
    "score.shard_rows=32",
    "pre_distill.max_steps=12",
    "pre_distill.epochs=9",
    "teacher.fit.max_steps=12",
    "teacher.fit.epochs=9",
    "method.steps=12",
    "method.updates_per_rollout=2",  # half of all checkpoints hold rollouts that are still to be learnt from
    "method.reward.truncated=bootstrap",
    "method.validate_every=3",
]


CAUSAL = '{"hidden_size": 16, "num_layers": 2, "num_heads": 2, "window_size": 8, "max_position_embeddings": 128}'
CAUSAL_CHANGES = [*CHANGES, f"teacher.shape={CAUSAL}", f"student.shape={CAUSAL}"]
CHAT_CHANGES = [
    *(change for change in CHANGES if not change.startswith("teacher.fit")),
    'teacher={"name": "NAME/teacher", "chat": {"system": "reply", "user": "say {source} now"}}',
    'student={"name": "NAME/student"}',
    "lengths.target=12",
]
TEXT_CHANGES = [
    "runtime.checkpoint_seconds=0",
    "method.rounds=2",
    "method.trajectory_stride=8",
    "evaluation.rounds=false",
    "teacher.pretrain.validate_every=2",
]

LLAMA_CHANGES = [  # running text again, with models that exist
    *(change for change in TEXT_CHANGES if not change.startswith("teacher")),
    'teacher={"name": "NAME/teacher", "fit": {"alpha": 1.0, "epochs": 2, "batch_rows": 64}}',
    'student={"name": "NAME/student"}',
    "labels.kind=hidden",
    "limit=800",
]


def recipe_of(name: str, home: Path) -> tuple[Outline, dict[str, Any]]:
    """A flow's outline and the parameters of its tiny run."""
    known = {"causal": CAUSAL_CHANGES, "chat": CHAT_CHANGES, "text": TEXT_CHANGES, "llama": LLAMA_CHANGES}
    changes = known.get(name, CHANGES)
    changes = [change.replace("NAME", str(home.parents[1])) for change in changes]
    if name in ("text", "llama"):
        home.mkdir(parents=True, exist_ok=True)
        return TEXT_OUTLINE, text_parameters(home.parent, *changes)
    recipe = load_catalogue(RECIPES)["tiny"]
    return OUTLINE, validate(OUTLINE.parameters, override(recipe.parameters, changes))


def run(recipe: str, home: Path, point: str | None, report: Path) -> None:
    """One run of the recipe, killed at `point`."""
    store = Store(home)
    first_progress: dict[str, float] = {}
    progress = Build.progress

    def told(build: Build, done: float, total: float, unit: str = "", **metrics: float) -> None:
        first_progress.setdefault(build.stage, done)
        report.write_text(json.dumps(first_progress))
        progress(build, done, total, unit, **metrics)

    Build.progress = told  # type: ignore[method-assign]
    if point is not None:
        arm(*point.split(":"))
    outline, parameters = recipe_of(recipe, home)
    execute(outline, store, "tiny", parameters, NullReporter())


def arm(event: str, stage: str, count: str) -> None:
    """Make this process kill itself at the COUNTth EVENT of STAGE."""
    left = int(count)

    def die() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if event == "progress":  # between two steps, shards or batches
        progress = Build.progress

        def told(build: Build, *arguments: Any, **metrics: float) -> None:
            progress(build, *arguments, **metrics)
            if build.stage == stage:
                die()

        Build.progress = told  # type: ignore[method-assign]
    elif event == "checkpoint":  # its files are written, it is not in place yet
        save = Checkpoints.save

        def saved(checkpoints: Checkpoints, step: int, write: Callable[[Path], None]) -> None:
            def wrote(directory: Path) -> None:
                write(directory)
                if checkpoints.dir.name.startswith(stage):
                    die()

            save(checkpoints, step, wrote)

        Checkpoints.save = saved  # type: ignore[method-assign]
    elif event in ("shard", "hash"):  # half of a shard's file is on disk, or of the hash beside it

        def torn(path: Path, writer: Callable[[Path], object]) -> None:
            if not path.parent.name.startswith(f"{stage}-") or (path.suffix == HASH) != (event == "hash"):
                atomic_write(path, writer)
                return

            def half(partial: Path) -> None:
                writer(partial)
                os.truncate(partial, partial.stat().st_size // 2)
                die()
                writer(partial)

            atomic_write(path, half)

        tasks.store.shards.atomic_write = torn  # type: ignore[attr-defined]
    elif event == "commit":  # everything is staged, the manifest too; the rename is to come
        rename = Path.rename

        def renamed(path: Path, target: Any) -> Path:
            if path.parent.name == ".staging" and path.name.startswith(f"{stage}-"):
                die()
            return rename(path, target)

        Path.rename = renamed  # type: ignore[method-assign]
    elif event == "rollouts":  # the student has written, the teacher has judged, nothing is learnt yet
        judge = kd_core.train.llmr.judge

        def judged(*arguments: Any, **more: Any) -> Any:
            judgement = judge(*arguments, **more)
            die()
            return judgement

        kd_core.train.llmr.judge = judged
    else:
        raise ValueError(f"unknown event {event}")


def spoil(home: Path, how: str, stage: str) -> list[str]:
    """Damage what a killed build has kept; a checkpoint in one of its files, which two more vouch for."""
    found: dict[str, Path] = {}
    for path in sorted((home / ".checkpoints").glob(f"{stage}-*/**/*")):
        kind = "step" if path.parent.name.startswith("step-") else path.name.partition("-")[0] + path.suffix
        if path.is_file() and path.name not in ("inputs.json", "hashes.json"):
            found[kind] = path
    for path in found.values():
        damage(path, how)
    return [path.name for path in found.values()]


def runs(recipe: str, home: Path, points: list[str]) -> Iterator[dict[str, Any]]:
    """Every point in turn, then a run to the end."""
    for point in [*points, None]:
        if point is not None and point.partition(":")[0] in HOWS:
            yield {"point": point, "spoilt": spoil(home, *point.split(":"))}
            continue
        report = home.parent / "first_progress.json"
        report.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                run(recipe, home, point, report)
                (home.parent / "modules.json").write_text(json.dumps(list(sys.modules)))
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        _, status = os.waitpid(child, 0)
        went_on_from = json.loads(report.read_text()) if report.exists() else {}
        yield {"point": point, "end": os.waitstatus_to_exitcode(status), "from": went_on_from}


def preload(recipe: str, home: Path) -> None:
    """Import what a run in `home` has imported, and read the code that is in its keys: seconds that each fork saves."""
    for name in json.loads((home.parent / "modules.json").read_text()):
        with contextlib.suppress(ImportError):  # a few modules are made while the program runs
            importlib.import_module(name)
    outline, parameters = recipe_of(recipe, home)
    execute(outline, Store(home), "tiny", parameters, NullReporter(), planning=True)


def main(recipe: str, folder: Path, points: dict[str, list[str]]) -> None:
    """The undisturbed run, then the others."""
    if write := {"chat": write_chat, "llama": write_llama}.get(recipe):
        for seed, role in enumerate(("teacher", "student")):
            write(folder / role, seed=seed)
    for name, of_name in {"undisturbed": [], **points}.items():
        home = folder / name / "home"
        home.parent.mkdir(parents=True)
        for row in runs(recipe, home, of_name):
            print(json.dumps({"name": name} | row), flush=True)
        if name == "undisturbed":
            preload(recipe, home)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), {n: p.split(",") for n, p in (each.split("=") for each in sys.argv[3:])})
