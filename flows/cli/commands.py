"""What each command of `distill` does. Heavy imports come late: a mistake in the arguments is told at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.catalogue import NamedRun, find_catalogue, load_catalogue, named_run, override
from flows.cli import care
from flows.cli.home import root, store_here
from flows.cli.status import find_run, show_status
from flows.output import show
from flows.settings import validate
from flows.stack import server

if TYPE_CHECKING:
    from tasks.store.runs import RunRecord

PROJECT = Path(__file__).resolve().parents[2]


def run(arguments: argparse.Namespace) -> int:
    """`distill run`: a named run here, to its comparison table."""
    named = _named(arguments)
    return _run(named.entrypoint, named.name, _parameters(arguments, named))


def plan(arguments: argparse.Namespace) -> int:
    """`distill plan`: a row per stage: hit or miss, and why."""
    from flows.outlines import execute, outline_of
    from tasks.compute.device import check_device
    from tasks.messages import first_line
    from tasks.store.progress import PlainReporter

    named = _named(arguments)
    outline = outline_of(named.entrypoint)
    parameters = validate(outline.parameters, _parameters(arguments, named))
    reporter = PlainReporter(sys.stderr)
    try:
        check_device(parameters["runtime"])
    except ValueError as error:  # another machine may have it
        reporter.warning(f"here a run is refused: {first_line(error)}")
    planned, _ = execute(outline, store_here(), named.name, parameters, reporter, planning=True)
    if arguments.verbose:
        for row in planned.plan:
            print(f"{row.stage}  {row.status}  {row.key}", *row.reasons, sep="\n    ")
    else:
        show.table(["stage", "plan", "why"], [[row.stage, row.status, row.why] for row in planned.plan])
    trained = dict.fromkeys(row.stage for row in planned.plan if row.trains and row.status != "hit")
    if trained and parameters["runtime"].engine == "ray":
        print(f"\nTrained by {parameters['runtime'].workers or 'all'} workers together: {', '.join(trained)}")
    by_code = [row for row in planned.plan if row.status == "miss" and any(r.startswith("code: ") for r in row.reasons)]
    if by_code:
        print(f"\nOther code than built what there is: {len(by_code)} stages. If it changes no result: distill accept")
    return 0


def up(arguments: argparse.Namespace) -> int:
    """`distill up`: the local stack, until Ctrl-C."""
    from flows.stack.up import up as start

    catalogue = _catalogue(arguments)
    load_catalogue(catalogue)  # it has runs of ours, described well
    start(root(), PROJECT, catalogue, arguments.port, lambda text: print(text, flush=True))
    return 0


def deploy(arguments: argparse.Namespace) -> int:
    """`distill deploy`: the catalogue, to a Prefect that exists already."""
    from flows.stack.deploy import deploy as register

    catalogue = _catalogue(arguments)
    load_catalogue(catalogue)  # as for `up`
    register(PROJECT, catalogue, arguments.pool, arguments.type, arguments.directory or PROJECT, print)
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
    return show_status(store_here(), arguments.run)


def resume(arguments: argparse.Namespace) -> int:
    """`distill resume`: an unfinished run again, with the parameters that it recorded."""
    from tasks.store.runs import scan_runs

    records, unreadable = scan_runs(store_here())
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
    parameters = _without_ray(record.parameters) if arguments.engine == "local" else record.parameters
    return _run(record.flow, record.name, override(parameters, _runtime_assignments(arguments)))


def sql(arguments: argparse.Namespace) -> int:
    """`distill sql`: one query against results.duckdb. An empty answer is an error where something is left out."""
    from tasks.catalog import database as catalog

    if not arguments.query.strip():
        raise ValueError('there is no query\nfor instance: distill sql "from runs"')
    with catalog.questions(store_here()) as ask:
        answer, missing = ask(arguments.query), catalog.left_out(ask)
    show.answer(answer, arguments.format)
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
    return 1 if missing and not answer.num_rows else 0


def export(arguments: argparse.Namespace) -> int:
    """`distill export`: a model directory with its card, here and on the hub."""
    from tasks.export.export import export_run
    from tasks.export.push import check_push, push
    from tasks.store.runs import scan_runs

    directory, repository = arguments.directory, arguments.push
    if repository is not None:
        check_push(repository)
        if directory is None and (directory := Path(repository.partition("/")[2])).exists():
            raise ValueError(
                f"{directory}, where this export would lie, is there already\n"
                f"name a new directory: distill export {arguments.run} DIRECTORY --push {repository}"
            )
    elif directory is None or arguments.public:
        raise ValueError("where to?\ngive a directory, --push USER/NAME, or both; --public is for what is pushed")
    store = store_here()
    records, unreadable = scan_runs(store)
    print(*unreadable, sep="\n", end="\n" if unreadable else "", file=sys.stderr)
    record = find_run(records, arguments.run)
    auto_class = export_run(store, record, directory)
    print(f"{directory} is ready: {auto_class}.from_pretrained({str(directory)!r})")
    if repository is not None:
        url = push(directory, repository, public=arguments.public)
        print(f"pushed to {url}, {'public' if arguments.public else 'private'}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """`distill report`: one HTML page about a run, and its figures as pictures where they are wanted."""
    from tasks.report import write_report
    from tasks.report.pictures.comparison import write_figures
    from tasks.store.runs import scan_runs

    store = store_here()
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
    "deploy": deploy,
    "ls": ls,
    "plan": plan,
    "status": status,
    "resume": resume,
    "verify": care.verify,
    "gc": care.gc,
    "accept": care.accept,
    "sql": sql,
    "export": export,
    "report": report,
}


def _run(entrypoint: str, name: str, parameters: dict[str, Any]) -> int:
    """Validate, run, print what came out.

    Where `distill up` is running, Prefect records the run; elsewhere it starts without Prefect, and faster.
    """
    from flows.output import summary

    store = store_here()
    url = server.running_stack(store.root)
    if url is not None:
        server.join(store.root, url)
    from flows.outlines import execute, outline_of
    from tasks.compute.device import check_device

    outline = outline_of(entrypoint)
    valid = validate(outline.parameters, parameters)
    check_device(valid["runtime"])
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
    if not named.name.startswith("compare/"):
        return override(named.parameters, _assignments(arguments))
    from flows.compare_outline import override_cells

    given = dict(named.parameters)
    if arguments.prefect_file is not None:
        given.setdefault("catalogue", str(find_catalogue(arguments.prefect_file)))
    return override_cells(given, _assignments(arguments))


def _assignments(arguments: argparse.Namespace) -> list[str]:
    """The `--set`s, then the options that are short for one."""
    short = [f"{name}={value}" for name in ("seed", "limit") if (value := getattr(arguments, name)) is not None]
    return [*arguments.assignments, *short, *_runtime_assignments(arguments)]


def _runtime_assignments(arguments: argparse.Namespace) -> list[str]:
    names = ("device", "threads", "engine", "workers", "address")
    return [f"runtime.{name}={value}" for name in names if (value := getattr(arguments, name)) is not None]


def _without_ray(parameters: dict[str, Any]) -> dict[str, Any]:
    """A run's parameters without what is for Ray alone, and goes with it."""
    of_ray = ("workers", "address", "gpus_per_worker", "sharded")
    return parameters | {"runtime": {name: x for name, x in parameters["runtime"].items() if name not in of_ray}}


def _is_done(record: RunRecord, later: list[RunRecord]) -> bool:
    """Whether nothing is left to resume: it is running, or it or a later run with the same parameters has completed.

    A later version's records may name parameters that this one's do not.
    """
    same = (
        each.name == record.name and record.parameters.items() <= each.parameters.items()
        for each in later
        if each.status == "completed"
    )
    return record.status == "running" or any(same)
