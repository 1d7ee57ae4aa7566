"""Peak memory of teacher scoring and of the policy-gradient pass, against full (B, T, V) logits.

Every number comes from a fresh process: the growth of its peak resident set over one pass, after a pass on one short
row has loaded what any pass loads. The head's own gradient, (V, D) float32, is part of ours and unavoidable.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import reference_llmr
from benchmarks.common import line
from kd_core.losses.rewards import RewardSettings
from kd_core.models.shapes import T5Shape, build_t5
from kd_core.models.t5 import encode
from kd_core.rollout.responses import Responses, Rollout
from kd_core.rollout.scoring import Judgement, judge
from kd_core.train.llmr import Experience, policy_gradient_loss

ROWS, SOURCE = 64, 32
SHAPE = T5Shape(d_model=64, d_kv=32, d_ff=128, num_layers=1, num_decoder_layers=1, num_heads=2)
VOCABULARIES, LENGTHS = (2_048, 32_128), (64, 128)
MIB = 2**20


def run() -> Iterator[dict[str, Any]]:
    """Scoring, then the policy gradient, over vocabularies and lengths."""
    for what in ("scoring", "policy gradient"):
        for vocabulary in VOCABULARIES:
            for length in LENGTHS:
                ours, reference = (peak(who, what, vocabulary, length) for who in ("ours", "reference"))
                logits = ROWS * length * vocabulary * 4 / MIB
                sizes = {"what": what, "rows": ROWS, "length": length, "vocabulary": vocabulary}
                head = vocabulary * SHAPE.d_model * 4 / MIB
                sizes |= {"one_float32_logit_tensor_mib": round(logits), "head_gradient_mib": round(head, 1)}
                yield line("memory", ours, reference, "MiB", **sizes)


def peak(who: str, what: str, vocabulary: int, length: int) -> float:
    """MiB that one pass adds to the peak of a fresh process."""
    arguments = [who, what, str(vocabulary), str(length)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout)["mib"])


def one_pass(who: str, what: str, vocabulary: int, length: int, rows: int) -> None:
    """Score, or differentiate, `rows` full-length outputs."""
    torch.manual_seed(0)
    model = build_t5(SHAPE, vocabulary, 0)
    source, mask = torch.randint(3, vocabulary, (rows, SOURCE)), torch.ones(rows, SOURCE, dtype=torch.bool)
    tokens, real = torch.randint(3, vocabulary, (rows, length)), torch.ones(rows, length, dtype=torch.bool)
    written = Responses(tokens, real, torch.ones(rows, dtype=torch.bool))
    gain = torch.randn(rows, length) / (rows * length)
    if what == "scoring":
        if who == "ours":
            judge(model, encode(model, source, mask), written, RewardSettings(truncated="bootstrap"))
        else:
            reference_llmr.rewards(model, source, mask, tokens, real)
    elif who == "ours":
        judged = Judgement(*[torch.zeros(rows, length)] * 3, real)
        rollout = Rollout(**vars(written), log_prob_BT=torch.zeros(rows, length))
        part = Experience.of(torch.arange(rows), rollout, judged, gain, None)
        loss, _ = policy_gradient_loss(model, encode(model, source, mask), part, gain)
        loss.backward()
    else:
        reference_llmr.loss(model, source, mask, tokens, real, gain).backward()


def resident_peak() -> int:
    """Bytes. On Linux of this program alone: what getrusage says has the parent's peak in it."""
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(row for row in status.read_text(encoding="utf-8").splitlines() if row.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


if __name__ == "__main__":
    _, who, what, vocabulary, length = sys.argv
    one_pass(who, what, int(vocabulary), 2, 1)
    before = resident_peak()
    one_pass(who, what, int(vocabulary), int(length), ROWS)
    print(json.dumps({"mib": (resident_peak() - before) / MIB}))
