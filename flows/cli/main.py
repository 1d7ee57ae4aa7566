"""The command `distill`: arguments in, one clear line out when something is wrong.

Everything heavy is imported inside `flows.cli.commands`, and that inside `main`, so that help and mistakes are instant.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.output import streams
from flows.output.messages import explain, is_explained

INTERRUPTED = 130
MOST_DAYS = 36_500
DESCRIPTION = """\
Distil a large language model into a small one, in cached stages.

A named run is an entry of prefect.yaml. What has been computed is never
computed again, and a run that was killed goes on where it was. Results,
artifacts and logs live in $DISTILL_HOME (./outputs)."""
EXAMPLES = {
    None: """\
  distill ls                     what can be run
  distill run llmr-chitchat      run it, from nothing to the table
  distill plan llmr-chitchat     what would be computed, and why
  distill sql "from metrics"     ask the results""",
    "run": """\
  distill run llmr-chitchat
  distill run llmr-chitchat --seed 1 --set method.optimizer.learning_rate=3e-4
  distill run llmr-chitchat --limit 2000     fewer pairs, for a first look
  distill run llmr-cnndm --engine ray --workers 8    eight GPUs, or a cluster
  distill run llmr-chitchat --set 'runtime.track=["tensorboard"]'
                              watch it train: also wandb, mlflow, trackio""",
    "up": """\
  distill up
and in another terminal:
  prefect deployment run distill/llmr-chitchat --watch
  prefect deployment run distill/llmr-chitchat --param seed=3 --watch""",
    "deploy": """\
  PREFECT_API_URL=http://prefect.example:4200/api distill deploy --pool gpu
and on the machine with the GPU, with the same PREFECT_API_URL:
  prefect worker start --pool gpu""",
    "plan": """\
  distill plan llmr-chitchat
  distill plan llmr-chitchat --verbose     every difference, and the keys
  distill plan llmr-chitchat --set method.reward.value=softmax""",
    "status": "  distill status\n  distill status llmr-chitchat-20260131-120000-1a2b3c",
    "resume": "  distill resume                 the last run that did not finish",
    "gc": "  distill gc --days 30           list, ask, remove",
    "accept": """\
  distill accept                       list it, and ask
  distill accept --stage score --yes   the teacher's outputs, and what follows""",
    "sql": """\
  distill sql "select method, metric, value, low, high from metrics"
  distill sql "from training_log where stage = 'llmr'" --format csv > log.csv
  distill sql "show tables\"""",
    "report": "  distill report                 of the last run\n  distill report llmr-chitchat --output report.html",
    "export": """\
  distill export llmr-chitchat ./my-model      of the last finished run
  distill export llmr-chitchat --push ada/it   to ./it, and to the hub, private""",
}


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = argparse.ArgumentParser(prog="distill", description=DESCRIPTION, **_help(None))
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", **_help(name))

    _named_run_arguments(command("run", "run a named run here, to its comparison table"))
    plan = command("plan", "say for each stage of a run whether it would be computed, and why")
    _named_run_arguments(plan)
    plan.add_argument("--verbose", action="store_true", help="every difference, not the first three")
    up = command("up", "start the local Prefect stack (server, deployments, worker) and keep it running")
    up.add_argument("--port", type=_port, default=4200, help="of the server and its dashboard (4200)")
    _catalogue_argument(up)
    deploy = command("deploy", "register the named runs with the Prefect server that PREFECT_API_URL names")
    deploy.add_argument("--pool", default="distill", help="the work pool, made if it is not there (distill)")
    deploy.add_argument("--type", help="the pool's type: process, docker, kubernetes, … (what it is, or process)")
    deploy.add_argument(
        "--directory", type=Path, metavar="DIR", help="where this project lies on the machine that computes (as here)"
    )
    _catalogue_argument(deploy)
    _catalogue_argument(command("ls", "list the named runs and what each needs"))
    status = command("status", "show the runs: finished, failed, crashed or going on")
    status.add_argument("run", nargs="?", metavar="RUN", help="show the stages of this one")
    resume = command("resume", "run the last unfinished run again, with its recorded parameters")
    resume.add_argument("run", nargs="?", metavar="RUN", help="this one instead of the last")
    _runtime_arguments(resume)
    command("verify", "check every file against its hash; move aside what is damaged")
    gc = command("gc", "remove what no recent run refers to and dead builds left, listed first")
    gc.add_argument("--days", type=_days, default=30, help="runs younger than this keep what they use (30)")
    gc.add_argument(
        "--grace", type=float, default=1, metavar="HOURS", help="what was used in the last hours stays in any case (1)"
    )
    gc.add_argument("--yes", action="store_true", help="remove without asking")
    accept = command("accept", "after a change of code that changes no result: keep what was built before it")
    accept.add_argument("--stage", metavar="STAGE", help="only artifacts of this stage, and what was built from them")
    accept.add_argument("--run", metavar="RUN", help="only what this run used, and what was built from it")
    accept.add_argument("--yes", action="store_true", help="accept without asking")
    sql = command("sql", "ask the results in SQL (DuckDB)")
    sql.add_argument("query", help='for instance "from runs"')
    sql.add_argument("--format", choices=["table", "csv", "json"], default="table", help="of the answer (table)")
    export = command("export", "write a model directory that transformers loads, with its model card")
    export.add_argument("run", metavar="RUN", help="a run's id, or a name for its last finished run")
    export.add_argument(
        "directory", nargs="?", type=Path, metavar="DIR", help="where to; must not exist, or be empty (the pushed name)"
    )
    export.add_argument(
        "--push", metavar="USER/NAME", help="send it to the Hugging Face hub too, with the token in HF_TOKEN"
    )
    export.add_argument("--public", action="store_true", help="everybody may see what is pushed (it is private)")
    report = command("report", "write a run's report: one HTML page that opens anywhere, without a network")
    report.add_argument("run", nargs="?", metavar="RUN", help="a run's id, or a name for its last run; the last of all")
    report.add_argument("--output", type=Path, metavar="FILE", help="where to (the store's reports/RUN.html)")
    report.add_argument("--figures", type=Path, metavar="DIR", help="draw its comparison and excess error as PNG here")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (said in one line), 2 (usage) or 130 (interrupted)."""
    streams.secure()
    if sys.flags.optimize > 1 and not _has_docstrings_again():
        print(
            "error: transformers cannot be imported without docstrings\nrun it without -OO; -O is fine", file=sys.stderr
        )
        return 1
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone: `distill sql … | head`
        streams.let_go()
        return 1


def _main(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    try:
        from flows.cli import commands

        return commands.COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        print(f"\ninterrupted{_how_to_go_on(arguments.command)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if is_explained(error):
            _keep_traceback()
            print(f"error: {explain(error)}", file=sys.stderr)
            return 1
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())[:400]}", file=sys.stderr)
        print(f"this should not happen; the traceback is in {_keep_traceback()}", file=sys.stderr)
        return 1


def _has_docstrings_again() -> bool:
    """Start over without PYTHONOPTIMIZE=2; False where an option, -OO, has taken the docstrings away."""
    if os.environ.pop("PYTHONOPTIMIZE", None) is not None:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return False


def _how_to_go_on(command: str) -> str:
    if command in ("run", "resume"):
        return "; what is finished is kept\ngo on with: distill resume"
    return ""


def _keep_traceback() -> Path | None:
    """Append the current traceback to the log; None where even that cannot be written."""
    with suppress(OSError, RuntimeError):  # RuntimeError: nobody knows whose home `~` is
        log = Path(os.environ.get("DISTILL_HOME") or "outputs").expanduser() / "logs" / "distill.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {' '.join(sys.argv)}\n{traceback.format_exc()}")
        return log
    return None


def _named_run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="a named run; `distill ls` lists them")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change a setting, dots reach inside: method.optimizer.learning_rate=3e-4 (repeatable)",
    )
    command.add_argument("--seed", type=int, help="short for --set seed=…")
    command.add_argument("--limit", type=int, help="at most this many training pairs, or tokens of running text")
    _runtime_arguments(command)
    _catalogue_argument(command)


def _runtime_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps, … (auto)")
    command.add_argument("--threads", type=int, help="CPU threads that torch uses")
    command.add_argument(
        "--engine", choices=["local", "ray"], help="ray: several processes make shards and train (local)"
    )
    command.add_argument("--workers", type=int, help="processes of engine ray (one a GPU, or a node without any)")
    command.add_argument("--address", help="of a Ray that runs, HOST:PORT or auto (one of its own, on this machine)")


def _catalogue_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prefect-file", type=Path, metavar="FILE", help="the catalogue of runs (prefect.yaml)")


def _help(name: str | None) -> dict[str, Any]:
    epilog = f"examples:\n{EXAMPLES[name]}" if name in EXAMPLES else None
    return {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, got {text}")
    return number


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days <= MOST_DAYS:  # no number at all is in no range
        raise argparse.ArgumentTypeError(f"a number of days is one from 0 to {MOST_DAYS}, got {text}")
    return days


if __name__ == "__main__":
    sys.exit(main())
