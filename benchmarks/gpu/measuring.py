"""Seconds and bytes of passes on a device, each side by itself: what fails or has no memory says so, the rest runs."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import line

REPEATS, LONGEST = 9, 4.0  # repeats of a pass at most, and seconds for all of them
FAILED = "failed: "
Pass = Callable[[], object]
Side = Callable[[], Pass]  # makes a pass, with all that it needs beside what both sides share
Plan = Sequence[tuple[str, Callable[[], Iterator[dict[str, Any]]]]]


@dataclass(frozen=True)
class Machine:
    """A device, by its name and its measured matrix rate."""

    device: torch.device
    name: str
    peak: float  # FLOP/s of a large product in bfloat16

    @classmethod
    def of(cls, device: torch.device, width: int) -> "Machine":
        """Measures the rate of a product of two square matrices."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
        return cls(device, name, 2 * width**3 / seconds(lambda: a @ b, device))

    def compared(
        self, what: str, ours: Side, others: Mapping[str, Side], *, tokens: int, flops: float, **sizes: Any
    ) -> Iterator[dict[str, Any]]:
        """A line for each of the others: seconds, tokens/s, and the share of the peak that the FLOPs needed come to.

        Each side is made when it is measured and dropped before the next: neither is measured in less memory.
        FLOPs are those of the weights' products over real tokens: padding, and whatever is computed twice, is no work.
        """
        sizes |= {"what": what, "device": self.name, "tokens": tokens}
        mine = attempt(lambda: seconds(ours(), self.device))
        for name, other in others.items():
            theirs = attempt(lambda other=other: seconds(other(), self.device))  # type: ignore[misc]
            rates = {}
            for side, found in (("", mine), ("reference_", theirs)):
                if isinstance(found, float):
                    rates[f"{side}tokens_per_second"] = round(tokens / found)
                    rates[f"{side}share_of_peak"] = round(flops / found / self.peak, 4)
            yield two_sided(mine, theirs, "s", reference_is=name, **rates, **sizes)

    def memory(self, what: str, ours: Pass, others: Mapping[str, Pass], **sizes: Any) -> Iterator[dict[str, Any]]:
        """MiB that a pass adds to what is allocated before it, at the most; 0 on a CPU, where nothing counts them."""
        sizes |= {"what": what, "device": self.name}
        mine = attempt(lambda: peak_memory(ours, self.device))
        for name, other in others.items():
            theirs = attempt(lambda other=other: peak_memory(other, self.device))  # type: ignore[misc]
            yield two_sided(mine, theirs, "MiB", reference_is=name, **sizes)


def two_sided(ours: float | str, reference: float | str, unit: str, **sizes: Any) -> dict[str, Any]:
    """A line; where a side has no number, it says why, under `failed` if that is no lack of memory."""
    if isinstance(ours, float) and isinstance(reference, float):
        return line("gpu", ours, reference, unit, **sizes)
    found = {"ours": ours, "reference": reference}
    numbers = {name: round(x, 6) if isinstance(x, float) else None for name, x in found.items()}
    said = {name: x for name, x in found.items() if isinstance(x, str)}
    failed = {name: x.removeprefix(FAILED) for name, x in said.items() if x.startswith(FAILED)}
    why = {"not_measured": said} | ({"failed": failed} if failed else {})
    return {"benchmark": "gpu", **numbers, "ratio": None, "unit": unit, **why, "sizes": sizes}


def attempt(measured: Callable[[], float]) -> float | str:
    """The number, or why there is none: no memory for it, or what it failed with."""
    try:
        return measured()
    except torch.OutOfMemoryError:
        return "out of memory"
    except Exception as error:  # whatever it is: the other side goes on
        return f"{FAILED}{in_a_line(error)}"
    finally:
        free()


def seconds(run: Pass, device: torch.device) -> float:
    """Median of several, after one that is not counted."""
    run()
    found: list[float] = []
    while len(found) < REPEATS and sum(found) < LONGEST:
        found.append(_once(run, device))
    return statistics.median(found)


def _once(run: Pass, device: torch.device) -> float:
    if device.type != "cuda":
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()  # type: ignore[no-untyped-call]
        run()
        end.record()  # type: ignore[no-untyped-call]
        end.synchronize()  # type: ignore[no-untyped-call]
        return float(start.elapsed_time(end)) / 1000  # type: ignore[no-untyped-call]


def peak_memory(run: Pass, device: torch.device) -> float:
    """MiB; see `Machine.memory`."""
    if device.type != "cuda":
        run()
        return 0.0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def there(run: Pass) -> Side:
    """A side that needs nothing but what is there already."""
    return lambda: run


def in_a_line(error: Exception) -> str:
    """Its type and what it says, shortened."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def free() -> None:
    """Give back what the last pass has left."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def carried_out(plan: Plan, end: float) -> Iterator[dict[str, Any]]:
    """The lines of each measurement in its order; after `end`, of the monotonic clock, the rest is left out by name.

    One that fails says so in its line, under `failed` (`not_measured` where memory ran out), and the others run.
    """
    for what, measure in plan:
        about = {"benchmark": "gpu", "what": what}
        if time.monotonic() > end:
            yield {**about, "not_measured": "the time was spent"}
            continue
        try:
            yield from measure()
        except torch.OutOfMemoryError:
            yield {**about, "not_measured": "out of memory"}
        except Exception as error:  # whatever it is: the other measurements go on
            yield {**about, "failed": in_a_line(error)}
        free()
