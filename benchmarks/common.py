"""What the benchmarks share: timing in turn, and how a measurement is printed. Needs PyTorch, and nothing else."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

REPEATS = 9


def in_turn(ours: Callable[[], object], reference: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Median seconds of each, run alternately after one warm-up, so that a drifting machine slows both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for seconds, function in zip(times, (ours, reference), strict=True):
            begun = time.perf_counter()
            function()
            if repeat:
                seconds.append(time.perf_counter() - begun)
    return statistics.median(times[0]), statistics.median(times[1])


def line(benchmark: str, ours: float, reference: float, unit: str, **sizes: Any) -> dict[str, Any]:
    """One measurement, ready to be printed."""
    ratio = round(reference / ours, 3) if ours else None
    return {
        "benchmark": benchmark,
        "ours": round(ours, 6),
        "reference": round(reference, 6),
        "ratio": ratio,
        "unit": unit,
        "sizes": {"threads": torch.get_num_threads(), **sizes},
    }
