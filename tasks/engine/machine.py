"""What a result was computed with and on, as a manifest records it."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

COMPUTING = ("torch", "transformers")  # whose numbers a result is made of
RECORDED_VERSIONS = ("torch", "transformers", "tokenizers", "pyarrow", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Python and the libraries whose numbers these are. From their metadata: nothing heavy is imported to know them."""
    found = {"python": platform.python_version()}
    for package in RECORDED_VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(device: str, threads: int | None) -> dict[str, Any]:
    """What the run computed on, without saying whose it is."""
    torch = sys.modules.get("torch")
    counted = torch.get_num_threads() if torch is not None else threads
    return {
        "platform": platform.platform(terse=True),
        "cpus": os.cpu_count(),
        "threads": counted,
        "device": device,
    }
