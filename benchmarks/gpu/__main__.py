"""`python -m benchmarks.gpu`: see the package. Exit code 1 where a measurement failed, 2 where there is no device."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import gpu


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line a measurement. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=gpu.__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …; cpu, with --small, tries the script out")
    parser.add_argument("--small", action="store_true", help="tiny shapes: whether it runs, in seconds")
    begun = f"begin nothing once {1 - gpu.RESERVE:.0%} of them are spent; what has begun is carried to its end"
    parser.add_argument("--seconds", type=float, default=gpu.SECONDS, help=begun.replace("%", "%%"))
    chosen = parser.parse_args(arguments)
    problem = _problem(chosen.device, chosen.small)
    if problem:
        print(problem, file=sys.stderr)
        return 2
    device, sizes = torch.device(chosen.device), gpu.small() if chosen.small else gpu.full()
    failed = []
    for line in gpu.measurements(device, sizes, chosen.seconds):
        print(json.dumps(line), flush=True)
        failed += [_name(line)] if "failed" in line else []
    if failed:
        print(f"failed: {', '.join(dict.fromkeys(failed))}\nwhat each of them said is in its line", file=sys.stderr)
    return 1 if failed else 0


def _name(line: dict[str, Any]) -> str:
    """What a line is about."""
    about = line.get("sizes", line)
    return f"{about['what']} of {about['model']}" if "model" in about else str(about["what"])


def _problem(device: str, small: bool) -> str | None:
    """Why nothing can be measured there, and what to do."""
    kind, _, number = device.partition(":")
    if kind == "cpu" and small:
        return None
    if kind != "cuda" or not (number or "0").isdecimal():
        return f"device must be cuda or cuda:N, or cpu with --small, got {device}\ngive one of them"
    if torch.cuda.device_count() <= int(number or 0):
        seen = f"PyTorch {torch.__version__} sees {torch.cuda.device_count()}"
        return f"no CUDA device {device} here: {seen}\nrun this where there is one, or try --device cpu --small"
    return None


if __name__ == "__main__":
    sys.exit(main())
