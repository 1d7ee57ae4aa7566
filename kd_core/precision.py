"""Which numbers a model is held and multiplied in, where a run is to choose: those that its device is fast in.

A field made by `precision_field` may be `auto` until `fill_precision` puts float32 or bfloat16 in its place, before
anything is called or named by its settings. What computes refuses an `auto`, whoever calls it.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import Field, field
from functools import cache
from typing import Any, Literal, TypeVar

import torch

from kd_core.filling import fill

Precision = Literal["float32", "bfloat16"]
Settings = TypeVar("Settings")

ASK_CUDA = "import torch; print(torch.cuda.is_bf16_supported(including_emulation=False))"


def precision_field() -> Any:
    """A field, float32 by default, that may leave it to the run."""
    said = "auto = bfloat16 where the device is fast in it, else float32"
    return field(default="float32", metadata={"precision": True, "description": said})


def fill_precision(settings: Settings, choose: Callable[[], Precision]) -> Settings:
    """`settings`, and all settings inside, with what `choose` says wherever they leave it to the run."""
    return fill(settings, lambda each, value: choose() if value == "auto" and "precision" in each.metadata else value)


def precisions(settings: Any) -> set[str]:
    """All that `settings`, and all settings inside, name."""
    found: set[str] = set()

    def note(each: "Field[Any]", value: Any) -> Any:
        if "precision" in each.metadata:
            found.add(value)
        return value

    fill(settings, note)
    return found


def check_precision(name: str, precision: str) -> None:
    """Raises ValueError for one that a field made by `precision_field` does not take."""
    if precision not in ("float32", "bfloat16", "auto"):
        raise ValueError(f"{name} must be float32, bfloat16 or auto, got {precision!r}")


def require_precision(name: str, precision: str) -> None:
    """Raises ValueError for a precision that nobody has chosen."""
    if precision == "auto":
        raise ValueError(f"{name} must be float32 or bfloat16, got auto\na run fills it in: fill_precision")


def fast_precision(device: str) -> Precision:
    """bfloat16 where a kind of device (cpu, cuda, mps) has products of it, and float32 where they are only played.

    A CPU without them takes seven times float32's time (AVX2). CUDA is asked in a process of its own: to be asked takes
    memory of the GPU, which another run may have.
    """
    if device == "cpu":
        has = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    else:
        has = device == "cuda" and _cuda_has_bfloat16()
    return "bfloat16" if has else "float32"


@cache
def _cuda_has_bfloat16() -> bool:
    asked = subprocess.run([sys.executable, "-c", ASK_CUDA], capture_output=True, text=True, check=False)
    return asked.stdout.strip() == "True"
