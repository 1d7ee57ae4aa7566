"""`make bench-gpu` runs to its end without a GPU, at tiny shapes; what fails, or has no time or memory, is named."""

import json
import math
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import __main__ as script
from benchmarks.gpu import cases, checks, measuring
from benchmarks.gpu.measuring import there
from kd_core.losses.lm_head import TokenScores

PER_MODEL = ["LLMR update", "sample", "scores", "policy gradient", "divergence", "GKD update"]
HEADS = ["policy gradient of a head", *["memory of scoring", "memory of policy gradient"] * 2]
CPU = torch.device("cpu")


def test_the_whole_script_runs_at_tiny_shapes_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "REPEATS", 1)
    assert script.main(["--device", "cpu", "--small"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    what = [line["sizes"]["what"] if "sizes" in line else line["what"] for line in lines]
    causal = [name for name in PER_MODEL for _ in range(1 + (name == "sample"))]  # by graphs too
    assert what == [
        "device",
        *["values"] * 6,
        "fused divergence",
        "memory of fused divergence",
        *causal,
        *HEADS,
        *PER_MODEL,
    ]
    seconds = [line for line in lines if line.get("unit") == "s"]
    assert len(seconds) == 15
    assert all(line["ours"] > 0 < line["sizes"]["share_of_peak"] for line in seconds)


def test_when_the_time_is_spent_what_is_left_out_is_named() -> None:
    lines = list(gpu.measurements(CPU, gpu.small(), 0.0))[1:]
    assert {line["not_measured"] for line in lines} == {"the time was spent"}
    assert {f"{what} of small {kind}" for what in PER_MODEL for kind in ("Llama", "T5")} < {
        line["what"] for line in lines
    }


def test_one_that_fails_or_has_no_memory_says_so_and_the_others_run() -> None:
    def large() -> Iterator[dict[str, Any]]:
        raise torch.OutOfMemoryError("tried to allocate 64 GiB")
        yield

    def broken() -> Iterator[dict[str, Any]]:
        yield {"what": "half"}
        raise RuntimeError("two\nlines")

    plan = [("large", large), ("broken", broken), ("good", lambda: iter([{"what": "good"}]))]
    assert list(measuring.carried_out(plan, float("inf"))) == [
        {"benchmark": "gpu", "what": "large", "not_measured": "out of memory"},
        {"what": "half"},
        {"benchmark": "gpu", "what": "broken", "failed": "RuntimeError: two lines"},
        {"what": "good"},
    ]


def test_a_side_without_memory_leaves_the_other_its_number() -> None:
    def large() -> None:
        raise torch.OutOfMemoryError("tried to allocate 64 GiB")

    def small() -> None:
        time.sleep(1e-3)

    machine = measuring.Machine.of(CPU, 8)
    sizes = {"tokens": 2, "flops": 1.0}
    (line,) = machine.compared("pass", there(small), {"full logits": there(large)}, **sizes)
    assert (line["reference"], line["not_measured"]) == (None, {"reference": "out of memory"})
    assert line["ours"] > 0 < line["sizes"]["tokens_per_second"]
    (line,) = machine.compared("pass", there(large), {"full logits": there(small)}, **sizes)
    assert (line["ours"], line["not_measured"]) == (None, {"ours": "out of memory"})
    assert "failed" not in line


def test_a_side_that_fails_leaves_the_other_its_number_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("two\nlines")

    def small() -> None:
        time.sleep(1e-3)

    machine = measuring.Machine.of(CPU, 8)
    sides = there(broken), {"full logits": there(small), "Liger": there(small)}
    first, second = lines = list(machine.compared("pass", *sides, tokens=2, flops=1.0, model="Llama"))
    lines += machine.memory("memory of a pass", small, {"full logits": broken})
    assert first["failed"] == second["failed"] == {"ours": "RuntimeError: two lines"}
    assert (first["ours"], first["not_measured"]) == (None, {"ours": "failed: RuntimeError: two lines"})
    assert first["reference"] > 0 < first["sizes"]["reference_tokens_per_second"]
    assert (lines[2]["ours"], lines[2]["failed"]) == (0, {"reference": "RuntimeError: two lines"})
    monkeypatch.setattr(gpu, "measurements", lambda *_: iter(lines))
    assert script.main(["--device", "cpu", "--small"]) == 1
    assert capsys.readouterr().err.startswith("failed: pass of Llama, memory of a pass\n")


def test_a_side_is_built_when_it_is_measured_and_gone_before_the_next() -> None:
    machine, alive = measuring.Machine.of(CPU, 8), weakref.WeakSet[torch.nn.Module]()

    def side() -> Any:
        assert not alive, "another side's student is still there"
        student = torch.nn.Linear(2, 2)
        alive.add(student)
        return lambda: student(torch.ones(2))

    lines = list(machine.compared("update", side, {"one": side, "two": side}, tokens=2, flops=1.0))
    assert all(line["ours"] > 0 < line["reference"] for line in lines)


@pytest.mark.parametrize("of", ["our", "stock"])
def test_an_update_without_memory_to_begin_leaves_the_other_its_number(
    monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    def large(*_: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 64 GiB")

    monkeypatch.setattr(measuring, "REPEATS", 1)
    monkeypatch.setattr(gpu.updates, f"{of}_llmr_update", large)
    machine, sizes = measuring.Machine.of(CPU, 8), gpu.small()
    name, config = next(iter(sizes.models.items()))
    line = next(gpu.of_model(machine, name, config, sizes.lengths, float("inf")))
    side, other = ("ours", "reference") if of == "our" else ("reference", "ours")
    assert line["not_measured"] == {side: "out of memory"}
    assert line[other] > 0


def test_values_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = cases.small_configs()["small Llama"]
    right = cases.token_scores

    def wrong(*arguments: Any) -> TokenScores:
        scores = right(*arguments)
        return TokenScores(scores.logit_M * 1.01, scores.value_M, scores.mean_M)

    monkeypatch.setattr(cases, "token_scores", wrong)
    with pytest.raises(AssertionError):
        list(checks.values(config, CPU, torch.float64))


def test_a_gradient_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cases.our_policy_gradient

    def broken(case: cases.Case) -> list[torch.Tensor]:
        *gradients, last = right(case)
        return [*gradients, torch.full_like(last, math.nan)]

    monkeypatch.setattr(cases, "our_policy_gradient", broken)
    found = checks.values(cases.small_configs()["small Llama"], CPU, torch.float32)
    distance = next(found)["distance"]
    assert math.isnan(distance["policy_gradient"])
    assert distance["scores"] < 1e-3 > distance["divergence"]
    with pytest.raises(AssertionError):
        next(found)


def test_samples_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.Case.of(cases.small_configs()["small T5"], checks.LENGTHS, CPU, torch.float64)
    checks.check_tokens(case)
    monkeypatch.setattr(checks, "draw", lambda scores, *_: (scores.argmin(dim=1), None))
    with pytest.raises(AssertionError, match="tokens differ"):
        checks.check_tokens(case)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda:99"], "no CUDA device cuda:99 here: PyTorch "),
        (["--device", "cpu"], "device must be cuda or cuda:N, or cpu with --small, got cpu"),
        (["--device", "tpu", "--small"], "device must be cuda or cuda:N, or cpu with --small, got tpu"),
        (["--device", "cuda:x"], "device must be cuda or cuda:N, or cpu with --small, got cuda:x"),
    ],
)
def test_without_a_device_it_says_so_in_two_lines(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert len(err.splitlines()) == 2


def test_its_help_says_when_it_stops_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["--help"])
    assert "begin nothing once 90% of them are spent" in " ".join(capsys.readouterr().out.split())


def test_it_needs_nothing_of_ours_but_kd_core() -> None:
    program = (
        "import sys, torch, transformers, numpy, safetensors\n"
        "there = {name.split('.')[0] for name in sys.modules}\n"
        "import benchmarks.gpu.__main__, benchmarks.gpu.updates\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} - there))\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert {"benchmarks", "kd_core"} <= set(done.stdout.split())
    assert not {"data", "tasks", "flows", "yaml", "pydantic", "prefect", "duckdb", "pyarrow"} & set(done.stdout.split())
