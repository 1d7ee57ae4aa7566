"""Ours against stock transformers on a CUDA device, with random weights at published shapes: `make bench-gpu`.

Needs Python, PyTorch and transformers; no network, no data. Values are checked first; then come measurements, the most
important first, until the time is spent: what is left out is named. Each prints JSON lines as they are found.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers

from benchmarks.gpu import cases, updates
from benchmarks.gpu.cases import Case, Lengths
from benchmarks.gpu.checks import values
from benchmarks.gpu.heads import Size, bare_product, fused_divergence, memory, memory_of_divergence
from benchmarks.gpu.measuring import Machine, Side, carried_out, free, there

SECONDS = 600.0
RESERVE = 0.1  # of them: what is begun before that may end
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Sizes:
    """How large all is."""

    models: dict[str, Any]  # configs by name
    lengths: Lengths
    liger: Size
    product: Size
    memory: Size
    peak_width: int


def full() -> Sizes:
    """What is published: Liger's JSD, and a head whose bare product takes 42 ms on an H100."""
    return Sizes(
        cases.configs(),
        Lengths(rows=64, median=128, prompt=512, response=128),
        liger=Size(8_192, 4_096, 128_256),
        product=Size(8_192, 4_096, 151_936),
        memory=Size(16_384, 896, 151_936),
        peak_width=8_192,
    )


def small() -> Sizes:
    """A few seconds on a CPU: whether the script runs, no more."""
    size = Size(24, 16, 50)
    return Sizes(cases.small_configs(), Lengths(rows=3, median=5, prompt=8, response=6), size, size, size, 64)


def run() -> Iterator[dict[str, Any]]:
    """On the first CUDA device, in full."""
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured", file=sys.stderr)
        return
    yield from measurements(torch.device("cuda"), full(), SECONDS)


def measurements(device: torch.device, sizes: Sizes, seconds: float) -> Iterator[dict[str, Any]]:
    """All lines: the device, the values, then what is timed."""
    end = time.monotonic() + seconds * (1 - RESERVE)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    machine = Machine.of(device, sizes.peak_width)
    yield {
        "benchmark": "gpu",
        "what": "device",
        "device": machine.name,
        "memory_gib": _gib(device),
        "peak_tflops": round(machine.peak / 1e12, 3),
        "peak_is": f"a product of {sizes.peak_width:,} squared in bfloat16, measured here",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    kinds = cases.small_configs().values()
    checks = [(f"values of {c.model_type} in {d}", partial(values, c, device, d)) for c in kinds for d in DTYPES]
    yield from carried_out(checks, end)
    first, *others = sizes.models.items()
    fused = [
        ("fused divergence", partial(fused_divergence, machine, sizes.liger)),
        ("memory of fused divergence", partial(memory_of_divergence, machine, sizes.liger)),
    ]
    yield from carried_out(fused, end)
    yield from of_model(machine, *first, sizes.lengths, end)
    heads = [
        ("policy gradient of a head", partial(bare_product, machine, sizes.product)),
        ("memory of heads", partial(memory, machine, sizes.memory)),
    ]
    yield from carried_out(heads, end)
    for name, config in others:
        yield from of_model(machine, name, config, sizes.lengths, end)


def of_model(machine: Machine, name: str, config: Any, lengths: Lengths, end: float) -> Iterator[dict[str, Any]]:
    """What is timed of one shape."""
    made: list[Case] = []  # once for all of them, within the first that there is time for

    def case() -> Case:
        made[:] = made or [Case.of(config, lengths, machine.device, torch.bfloat16)]
        return made[0]

    def timed(what: str, *, sampled: bool = False, backward: bool = False, passes: int = 1) -> Iterator[dict[str, Any]]:
        one, attribute = case(), what.lower().replace(" ", "_")

        def side(name: str) -> Side:
            if attribute.endswith("_update"):  # has a student of its own, and our loop its optimizer's state
                return partial(getattr(updates, f"{name}_{attribute}"), one)
            return there(partial(getattr(cases, f"{name}_{attribute}"), one))

        others = {"transformers": side("stock")}
        if what == "sample" and one.is_causal:
            others["ours by CUDA graphs"] = there(partial(cases.our_sample_by_graphs, one))
        yield from machine.compared(
            what,
            side("our"),
            others,
            tokens=one.num_tokens(sampled=sampled),
            flops=one.flops(sampled=sampled, backward=backward, passes=passes),
            model=name,
            vocabulary=config.vocab_size,
            rows=lengths.rows,
            prompt_tokens=int(one.prompt_mask_BS.sum()),
        )

    plan: dict[str, dict[str, Any]] = {
        "LLMR update": {"sampled": True, "backward": True, "passes": 3},  # the student writes and learns, both read
        "sample": {"sampled": True},
        "scores": {},
        "policy gradient": {"backward": True},
        "divergence": {"backward": True, "passes": 2},
        "GKD update": {"sampled": True, "backward": True, "passes": 3},
    }
    yield from carried_out([(f"{what} of {name}", partial(timed, what, **how)) for what, how in plan.items()], end)
    made.clear()
    free()


def _gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
