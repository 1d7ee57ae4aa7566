"""What keeps a store in order: `distill verify`, `gc` and `accept`. Heavy imports come late, as in `commands`."""

from __future__ import annotations

import argparse
import sys

from flows.cli.home import store_here
from flows.cli.status import find_run
from flows.output import show


def verify(arguments: argparse.Namespace) -> int:
    """`distill verify`: exit code 1 if anything is not what it was."""
    from tasks.store import maintenance
    from tasks.store.runs import scan_runs

    store, count = store_here(), 0
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

    store = store_here()
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


def accept(arguments: argparse.Namespace) -> int:
    """`distill accept`: list what only code keeps from being a hit, ask, and make it one."""
    from tasks.store import accept as store_accept
    from tasks.store.runs import scan_runs

    store = store_here()
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


def _agreed(question: str) -> bool:
    return sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")
