"""What each command of `distill` does. Heavy imports come late: a mistake in the arguments is told at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.catalogue import NamedRun, find_catalogue, load_catalogue, named_run, override
from flows.cli.status import find_run, show_status
from flows.output import show
from flows.settings import validate
from flows.stack import server

if TYPE_CHECKING:
    from tasks.store.artifacts import Store
    from tasks.store.runs import RunRecord

PROJECT = Path(__file__).resolve().parents[2]


def run(arguments: argparse.Namespace) -> int:
    """`distill run`: a named run here, to its comparison table."""
    named = _named(arguments)
    return _run(named.entrypoint, named.name, _parameters(arguments, named))


def plan(arguments: argparse.Namespace) -> int:
    """`distill plan`: a row per stage: hit or miss, and why."""
    from flows.outlines import execute, outline_of
    from tasks.store.progress import NullReporter

    named = _named(arguments)
    outline = outline_of(named.entrypoint)
    parameters = validate(outline.parameters, _parameters(arguments, named))
    planned, _ = execute(outline, _store(), named.name, parameters, NullReporter(), planning=True)
    if arguments.verbose:
        for row in planned.plan:
            print(f"{row.stage}  {row.status}  {row.key}", *row.reasons, sep="\n    ")
    else:
        show.table(["stage", "plan", "why"], [[row.stage, row.status, row.why] for row in planned.plan])
    by_code = [row for row in planned.plan if row.status == "miss" and any(r.startswith("code: ") for r in row.reasons)]
    if by_code:
        print(f"\nOther code than built what there is: {len(by_code)} stages. If it changes no result: distill accept")
    return 0


def accept(arguments: argparse.Namespace) -> int:
    """`distill accept`: list what only code keeps from being a hit, ask, and make it one."""
    from tasks.store import accept as store_accept
    from tasks.store.runs import scan_runs

    store = _store()
    run = None if arguments.run is None else find_run(scan_runs(store)[0], arguments.run)
    used = None if run is None else {each.key for each in run.stages}
    items = store_accept.acceptable(store, stage=arguments.stage, used=used)
    if not items:
        print("no artifact is kept from being a hit by code alone")
        return 0
    show.table(
        ["stage", "known as", "would be", "why"],
        [[each.artifact.stage, each.artifact.key[:8], each.target.key[:8], each.why] for each in items],
    )
    question = f"is every result the same with the code of today? take these {len(items)} for its work [y/N] "
    if not arguments.yes and not _agreed(question):
        print("nothing was changed; --yes accepts without asking")
        return 0
    command = " ".join(["distill accept", *(f"--{n} {v}" for n in ("stage", "run") if (v := getattr(arguments, n)))])
    done = sum(store_accept.accept(store, each, command + " --yes" * arguments.yes) for each in items)
    print(f"{done} artifacts are hits for the code of today; their manifests say what they were known as")
    return 0


def up(arguments: argparse.Namespace) -> int:
    """`distill up`: the local stack, until Ctrl-C."""
    from flows.stack.up import up as start

    catalogue = _catalogue(arguments)
    load_catalogue(catalogue)  # it has runs of ours, described well
    start(_root(), PROJECT, catalogue, arguments.port, lambda text: print(text, flush=True))
    return 0


def ls(arguments: argparse.Namespace) -> int:
    """`distill ls`: the catalogue."""
    path = _catalogue(arguments)
    for named in load_catalogue(path).values():
        show.heading(named.name)
        show.labelled([("what", named.description), ("needs", named.needs)])
    print(f"\nThese are in {path}. Run one with: distill run NAME")
    return 0


def status(arguments: argparse.Namespace) -> int:
    """`distill status`: every run, or the stages of one."""
    return show_status(_store(), arguments.run)


def resume(arguments: argparse.Namespace) -> int:
    """`distill resume`: an unfinished run again, with the parameters that it recorded."""
    from tasks.store.runs import scan_runs

    records, unreadable = scan_runs(_store())
    if unreadable and arguments.run is None:
        raise ValueError(
            f"{unreadable[0]}: it may be the last run\nname the run to go on with; `distill status` lists them"
        )
    unfinished = [each for number, each in enumerate(records) if not _is_done(each, records[number:])]
    if arguments.run is not None:
        record = find_run(records, arguments.run)
    elif unfinished:
        record = unfinished[-1]
    else:
        raise ValueError("there is no unfinished run\nsee `distill status`, or start one with `distill run NAME`")
    if record.status == "running":
        raise ValueError(f"{record.run_id} is still running, as process {record.pid}\nwait for it, or end it first")
    print(f"going on with {record.run_id}")
    return _run(record.flow, record.name, override(record.parameters, _runtime_assignments(arguments)))


def verify(arguments: argparse.Namespace) -> int:
    """`distill verify`: exit code 1 if anything is not what it was."""
    from tasks.store import maintenance
    from tasks.store.runs import scan_runs

    store, count = _store(), 0
    for problem in maintenance.verify(store, show.counter("artifacts checked")):
        count += 1
        print(f"{problem.artifact.path}: {problem.what}")
        for moved in problem.moved:
            print(f"  {moved}")
        if not problem.moved:
            print("  left where it is: call this again when nobody is at it, and it can be read")
    unreadable = scan_runs(store)[1]
    print(*unreadable, sep="\n", end="\n" if unreadable else "")
    if count:
        print(f"damaged: {count}; a run that needs what was moved aside builds it anew")
    if count or unreadable:
        return 1
    print(f"all {sum(1 for _ in store.artifacts())} artifacts are what they were when they were made")
    return 0


def gc(arguments: argparse.Namespace) -> int:
    """`distill gc`: list what nobody refers to, ask, delete."""
    from tasks.store import maintenance

    store = _store()
    garbage = maintenance.unreferenced(store, arguments.days, arguments.grace)
    if not garbage:
        print(f"every artifact is used by a run of the last {arguments.days:g} days, or was in the last hours")
        return 0
    show.table(["what", "name", "size"], [[each.what, each.path.name[:40], show.size(each.bytes)] for each in garbage])
    total = show.size(sum(each.bytes for each in garbage))
    if not arguments.yes and not _agreed(f"delete these {len(garbage)}, {total} in all? [y/N] "):
        print("nothing was deleted; --yes deletes without asking")
        return 0
    count, freed = maintenance.delete(store, garbage)
    kept = f"; {len(garbage) - count} are in use by now and stay" if count < len(garbage) else ""
    print(f"freed {show.size(freed)}{kept}")
    return 0


def sql(arguments: argparse.Namespace) -> int:
    """`distill sql`: one query against results.duckdb. An empty answer is an error where something is left out."""
    from tasks.catalog import database as catalog

    with catalog.questions(_store()) as ask:
        answer, missing = ask(arguments.query), catalog.left_out(ask)
    show.answer(answer, arguments.format)
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
    return 1 if missing and not answer.num_rows else 0


def export(arguments: argparse.Namespace) -> int:
    """`distill export`: a model directory with its card."""
    from tasks.export.export import export_run
    from tasks.store.runs import scan_runs

    store = _store()
    records, unreadable = scan_runs(store)
    print(*unreadable, sep="\n", end="\n" if unreadable else "", file=sys.stderr)
    record = find_run(records, arguments.run)
    auto_class = export_run(store, record, arguments.directory)
    print(f"{arguments.directory} is ready: {auto_class}.from_pretrained({str(arguments.directory)!r})")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """`distill report`: one HTML page about a run, and its figures as pictures where they are wanted."""
    from tasks.report import write_report
    from tasks.report.pictures.comparison import write_figures
    from tasks.store.runs import scan_runs

    store = _store()
    records, unreadable = scan_runs(store)
    print(*unreadable, sep="\n", end="\n" if unreadable else "", file=sys.stderr)
    if not records:
        raise ValueError("there are no runs yet\nstart one with: distill run llmr-chitchat")
    record = records[-1] if arguments.run is None else find_run(records, arguments.run)
    print(write_report(store, record.run_id, arguments.output))
    if arguments.figures is not None:
        print(*write_figures(store, record, arguments.figures), sep="\n")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": run,
    "up": up,
    "ls": ls,
    "plan": plan,
    "status": status,
    "resume": resume,
    "verify": verify,
    "gc": gc,
    "accept": accept,
    "sql": sql,
    "export": export,
    "report": report,
}


def _run(entrypoint: str, name: str, parameters: dict[str, Any]) -> int:
    """Validate, run, print what came out.

    Where `distill up` is running, Prefect records the run; elsewhere it starts without Prefect, and faster.
    """
    from flows.output import summary

    store = _store()
    url = server.running_stack(store.root)
    if url is not None:
        server.join(store.root, url)
    from flows.outlines import execute, outline_of
    from tasks.compute import device_of

    outline = outline_of(entrypoint)
    valid = validate(outline.parameters, parameters)
    device_of(valid["runtime"])  # it is there
    if url is not None:
        from flows.stack.recorded import run_recorded

        run_id, evaluation = run_recorded(outline, name, valid)
    else:
        from tasks.store.progress import default_reporter

        finished, last = execute(outline, store, name, valid, default_reporter())
        run_id, evaluation = finished.run_id, last.path
    summary.show_results(name, run_id, evaluation, store.root)
    return 0


def _catalogue(arguments: argparse.Namespace) -> Path:
    return find_catalogue(arguments.prefect_file, lambda text: print(f"note: {text}", file=sys.stderr))


def _named(arguments: argparse.Namespace) -> NamedRun:
    return named_run(load_catalogue(_catalogue(arguments)), arguments.name)


def _parameters(arguments: argparse.Namespace, named: NamedRun) -> dict[str, Any]:
    """The named run's parameters with the `--set`s. A comparison is told where the run that it names is looked up."""
    given = dict(named.parameters)
    if arguments.prefect_file is not None and named.name.startswith("compare/"):
        given.setdefault("catalogue", str(find_catalogue(arguments.prefect_file)))
    return override(given, _assignments(arguments))


def _assignments(arguments: argparse.Namespace) -> list[str]:
    """The `--set`s, then the options that are short for one."""
    short = [f"{name}={value}" for name in ("seed", "limit") if (value := getattr(arguments, name)) is not None]
    return [*arguments.assignments, *short, *_runtime_assignments(arguments)]


def _runtime_assignments(arguments: argparse.Namespace) -> list[str]:
    return [
        f"runtime.{name}={value}" for name in ("device", "threads") if (value := getattr(arguments, name)) is not None
    ]


def _store() -> Store:
    from tasks.store.artifacts import Store

    return Store(_root())


def _root() -> Path:
    """Where results go. Raises ValueError where that cannot be known, or not hold a database."""
    from tasks.store.artifacts import default_root

    try:
        root = default_root()
    except RuntimeError:
        raise ValueError("DISTILL_HOME begins with ~, and there is no such user's home\ngive the whole path") from None
    if "?" in str(root):
        raise ValueError(
            f"DISTILL_HOME must not hold a question mark, got {root}: DuckDB cannot\nchoose another folder"
        )
    return root


def _is_done(record: RunRecord, later: list[RunRecord]) -> bool:
    """Whether nothing is left to resume: it goes on, or it or a later run with the same parameters has completed."""
    same = [each for each in later if (each.name, each.parameters) == (record.name, record.parameters)]
    return record.status == "running" or any(each.status == "completed" for each in same)


def _agreed(question: str) -> bool:
    return sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")
