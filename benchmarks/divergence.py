"""One learning pass of divergence training at T5's vocabulary against full logits: time, and memory of fresh processes.

Encoders, decoders, both heads, the divergence and its gradient; the same weights, sources and outputs. Memory is the
growth of a fresh process's peak over one pass, as in `memory`.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import reference_divergence
from benchmarks.common import in_turn, line
from benchmarks.memory import MIB, resident_peak
from kd_core.losses.divergence_head import Divergence, DivergenceKind
from kd_core.models.shapes import T5Shape, build_t5
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import Sources
from kd_core.train.divergence import ForwardKLSettings, Pair, Term, Transfer
from kd_core.train.ranks import ALONE

VOCABULARY, ROWS, SOURCE, LENGTH = 32_128, 64, 24, 24
SHAPES = {  # the demo's, and heads as wide as T5-small's student under a T5-base teacher
    "demo": (T5Shape(d_model=128), T5Shape(d_model=64, d_kv=32, d_ff=256, num_heads=2)),
    "wide": (
        T5Shape(d_model=768, d_kv=64, d_ff=1024, num_layers=1, num_decoder_layers=1, num_heads=4),
        T5Shape(d_model=512, d_kv=64, d_ff=1024, num_layers=1, num_decoder_layers=1, num_heads=4),
    ),
}
KINDS: tuple[DivergenceKind, ...] = ("forward_kl", "reverse_kl", "js")
BETA = 0.5


@dataclass(frozen=True)
class Case:
    """Two models, and outputs of half to all of the length limit."""

    teacher: Any
    student: Any
    sources: TokenRows
    outputs: TokenRows

    @classmethod
    def of(cls, shapes: tuple[T5Shape, T5Shape], vocabulary: int, rows: int, length: int) -> "Case":
        """Random weights and tokens: what is measured does not depend on what they are."""
        rng = torch.Generator().manual_seed(0)

        def texts(longest: int) -> TokenRows:
            lengths = torch.randint(max(1, longest // 2), longest + 1, (rows,), generator=rng).tolist()
            return TokenRows.of([torch.randint(3, vocabulary, (n,), generator=rng).tolist() for n in lengths])

        models = (build_t5(shape, vocabulary, seed) for seed, shape in enumerate(shapes))
        return cls(*models, texts(SOURCE), texts(length))

    def passes(self, kind: DivergenceKind) -> tuple[Callable[[], float], Callable[[], float]]:
        """Our pass and the reference's; each leaves its gradient with the student and returns its loss."""
        transfer = Transfer(Sources(self.sources, self.sources), self.outputs)
        settings = ForwardKLSettings(sampling=SamplingSettings(max_new_tokens=int(self.outputs.lengths.max())))
        pair = Pair(self.student, self.teacher, transfer, settings, None)
        rows, terms = torch.arange(len(self.outputs)), [Term("teacher", Divergence(kind, BETA))]
        part, count = pair.write(ALONE.mine(rows), terms, 0), int(self.outputs.lengths.sum())
        source, source_mask = self.sources.batch(rows, 0)
        tokens, mask = self.outputs.batch(rows, 0)

        def ours() -> float:
            self.student.zero_grad()
            loss, _ = pair.loss(part, terms, count)
            loss.backward()
            return float(loss.detach())

        def reference() -> float:
            self.student.zero_grad()
            models = self.student, self.teacher
            loss = reference_divergence.loss(*models, source, source_mask, tokens, mask, kind, BETA)
            loss.backward()
            return float(loss.detach())

        return ours, reference


def run() -> Iterator[dict[str, Any]]:
    """Time over shapes and divergences, then memory."""
    for name, shapes in SHAPES.items():
        yield from measure(Case.of(shapes, VOCABULARY, ROWS, LENGTH), shape=name)
    for kind in KINDS:
        ours, reference = (peak(who, kind) for who in ("ours", "reference"))
        yield line("divergence", ours, reference, "MiB", what=kind, shape="demo", rows=ROWS, length=LENGTH)


def measure(case: Case, **sizes: Any) -> Iterator[dict[str, Any]]:
    """Seconds a token, after a check that losses and gradients agree."""
    count = int(case.outputs.lengths.sum())
    for kind in KINDS:
        check(case, kind)
        ours, reference = (seconds / count for seconds in in_turn(*case.passes(kind), repeats=5))
        rates = {"tokens_per_second": round(1 / ours), "reference_tokens_per_second": round(1 / reference)}
        yield line("divergence", ours, reference, "s/token", what=kind, tokens=count, **rates, **sizes)


def check(case: Case, kind: DivergenceKind) -> None:
    """Raise AssertionError unless losses and gradients agree to float32's last digits."""
    ours, reference = case.passes(kind)
    loss = ours()
    gradients = {name: p.grad.clone() for name, p in case.student.named_parameters()}
    stock = reference()
    assert abs(loss - stock) < 1e-4 * max(1.0, abs(stock)), (loss, stock)
    for name, p in case.student.named_parameters():
        scale = float(p.grad.abs().max())
        torch.testing.assert_close(gradients[name], p.grad, atol=1e-3 * scale, rtol=1e-3, msg=name)


def peak(who: str, kind: DivergenceKind) -> float:
    """MiB that one pass adds to the peak of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.divergence", who, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["mib"])


def one_pass(who: str, kind: DivergenceKind, rows: int, length: int, vocabulary: int = VOCABULARY) -> None:
    """Learn once from `rows` outputs."""
    Case.of(SHAPES["demo"], vocabulary, rows, length).passes(kind)[("ours", "reference").index(who)]()


if __name__ == "__main__":
    _, who, kind = sys.argv
    one_pass(who, kind, 1, 2)  # type: ignore[arg-type]
    before = resident_peak()
    one_pass(who, kind, ROWS, LENGTH)  # type: ignore[arg-type]
    print(json.dumps({"mib": (resident_peak() - before) / MIB}))
