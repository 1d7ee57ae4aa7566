"""The teacher's labels on disk: bytes a token, what reading them costs the loss, and memory against their number.

Forward KL over V = 32,128 from labels in random order off the disk, against the same from states that are in memory:
the head's products are in both. Memory is the peak resident set of a fresh process that writes labels by shards, opens
them as training does, and reads all of them once in random order; the reference is an eighth as many.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import torch

from benchmarks.common import in_turn, line
from benchmarks.memory import MIB, resident_peak
from kd_core.losses.divergence_head import Divergence, TeacherStates, as_teacher, divergence_loss
from kd_core.losses.head import Head
from kd_core.losses.soft_targets import HiddenLabels, SampledLabels, TeacherLabels, TopKLabels
from kd_core.rollout.teacher_labels import LabelSettings, make_labels
from tasks.labels.files import open_labels, write_labels

KINDS = {
    "hidden": LabelSettings(kind="hidden"),
    "topk, even": LabelSettings(kind="topk"),
    "topk, bucket": LabelSettings(kind="topk", tail="bucket"),
    "sampled": LabelSettings(kind="sampled"),
}
VOCABULARY, WIDTH, STUDENT = 32_128, 512, 256
TOKENS, BATCH = 4096, 1024
FEW, MANY, SHARD = 250_000, 2_000_000, 50_000
STATES = 64  # width of the hidden states whose number is what matters


def run() -> Iterator[dict[str, Any]]:
    """Each kind's room and time, then memory."""
    for name in KINDS:
        yield from measure(name)
    for kind in ("hidden", "topk", "sampled"):
        many, few = (peak(kind, tokens) for tokens in (MANY, FEW))
        yield line(
            "labels", many, few, "MiB", what="peak of writing and reading", kind=kind, tokens=MANY, reference_tokens=FEW
        )


def measure(name: str) -> Iterator[dict[str, Any]]:
    """One kind: bytes against a dense row of float16, milliseconds against states in memory."""
    generator = torch.Generator().manual_seed(0)
    head, own = (Head(torch.randn((VOCABULARY, each), generator=generator) / each**0.5) for each in (WIDTH, STUDENT))
    hidden_ME = 3 * torch.randn((TOKENS, WIDTH), generator=generator)
    hidden_MD = 2 * torch.randn((TOKENS, STUDENT), generator=generator)
    labels = make_labels(hidden_ME, head, KINDS[name], torch.rand((TOKENS, KINDS[name].draws), generator=generator))
    index = torch.randperm(TOKENS, generator=generator)[:BATCH]
    ones = torch.ones(BATCH)
    with TemporaryDirectory() as scratch:
        path = Path(scratch, "labels.parquet")
        write_labels(path, labels, _place(0, TOKENS), VOCABULARY)
        stored = open_labels([path], Path(scratch), "x", head)

        def loss(teacher: TeacherStates | TeacherLabels) -> torch.Tensor:
            states = hidden_MD[index].requires_grad_()
            found, _ = divergence_loss(states, own, teacher, ones, Divergence("forward_kl"))
            found.backward()  # type: ignore[no-untyped-call]
            assert states.grad is not None
            return states.grad

        def offline() -> torch.Tensor:
            return loss(as_teacher(stored.of(index), VOCABULARY))

        def resident() -> torch.Tensor:
            return loss(TeacherStates(hidden_ME[index], head))

        if name == "hidden":
            torch.testing.assert_close(offline(), resident(), atol=1e-3, rtol=1e-2)
        else:
            torch.testing.assert_close(offline(), loss(labels.of(index)))
        yield line(
            "labels", path.stat().st_size / TOKENS, 2 * VOCABULARY, "bytes a token", kind=name, vocabulary=VOCABULARY
        )
        ours, reference = (1000 * s for s in in_turn(offline, resident))
        yield line("labels", ours, reference, "ms", what="forward KL, learning", kind=name, tokens=BATCH)


def peak(kind: str, tokens: int) -> float:
    """MiB that labels of so many tokens add to the peak of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.labels", kind, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["mib"])


def stream(kind: str, tokens: int, scratch: Path) -> int:
    """Write synthetic labels by shards, open them, and read each once in random order. Returns the tokens read."""
    generator = torch.Generator().manual_seed(0)
    files = []
    for first in range(0, tokens, SHARD):
        rows = min(SHARD, tokens - first)
        files.append(scratch / f"labels-{first:09d}.parquet")
        write_labels(files[-1], _synthetic(kind, rows, generator), _place(first, rows), VOCABULARY)
    labels = open_labels(files, scratch, "x", Head(torch.zeros(VOCABULARY, STATES)))
    return sum(len(labels.of(index)) for index in torch.randperm(tokens, generator=generator).split(BATCH))


def _synthetic(kind: str, rows: int, generator: torch.Generator) -> TeacherLabels:
    if kind == "hidden":
        states = torch.randn((rows, STATES), generator=generator).half()
        return HiddenLabels(states, Head(torch.zeros(VOCABULARY, STATES)))
    kept = 25 if kind == "topk" else 16
    ids = torch.randint(VOCABULARY, (rows, kept), generator=generator, dtype=torch.int32)
    if kind == "topk":
        return TopKLabels(ids, -3 - torch.rand((rows, kept), generator=generator).half())
    return SampledLabels(ids, torch.ones((rows, kept), dtype=torch.uint8))


def _place(first: int, rows: int) -> pa.Table:
    return pa.table({"id": pa.array(range(first, first + rows), pa.int64())})


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        stream(sys.argv[1], SHARD, Path(scratch))
        before = resident_peak()
        stream(sys.argv[1], int(sys.argv[2]), Path(scratch))
        print(json.dumps({"mib": (resident_peak() - before) / MIB}))
