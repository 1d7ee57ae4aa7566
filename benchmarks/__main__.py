"""Run benchmarks and print one JSON line a measurement: `python -m benchmarks [NAME …]`.

Each module beside this one with a `run()` generator is a benchmark. Ours and the reference run in turn in one process
(or pairwise in fresh ones where memory is measured), medians of several, after a check that both give the same
numbers. `ratio` is reference / ours where less is better: above 1, ours is faster or smaller. A benchmark that fails
says so, the others run, and the exit code is 1.
"""

import importlib
import json
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
HELPERS = {"__main__", "common", "demo"}


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(
        m.name for m in pkgutil.iter_modules([str(FOLDER)]) if m.name not in HELPERS and "reference" not in m.name
    )


def main(chosen: Sequence[str]) -> int:
    """Run the named benchmarks, or all. Returns the exit code."""
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        print(f"unknown benchmark {', '.join(unknown)}\nthere are: {', '.join(names())}", file=sys.stderr)
        return 2
    failed = [name for name in chosen or names() if not finishes(name)]
    if failed:
        print(f"failed: {', '.join(failed)}\nwhat each of them said is above", file=sys.stderr)
    return 1 if failed else 0


def finishes(name: str) -> bool:
    """Run one benchmark and print its lines; where it fails, say so instead of ending the others."""
    print(f"{name} …", file=sys.stderr, flush=True)
    try:
        for line in importlib.import_module(f"benchmarks.{name}").run():
            print(json.dumps(line), flush=True)
    except Exception as error:  # whatever it is: another machine's benchmarks go on
        traceback.print_exc()
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"{name} failed: {reason}", file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
