"""Where a run computes: what is said of a device before the run has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kd_core.train.state import OptimizerSettings
from tasks.compute.device import check_device, precision_of, slow_precision, teacher_devices
from tasks.engine.settings import RuntimeSettings


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, each of another run's: nothing may be put on them."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch.cuda, "set_device", refuse)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0", "cuda:1"])
def test_a_gpu_is_not_touched_by_who_only_asks_whether_it_is_there(device: str) -> None:
    check_device(RuntimeSettings(device=device, cuda_graphs=True))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "cuda:01", "mps"])
def test_one_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"runtime.device '{device}' cannot be used here"):
        check_device(RuntimeSettings(device=device))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_teacher_is_spread_over_a_device_and_its_neighbours(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = RuntimeSettings(device=device, teacher_devices=2)
    check_device(given)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("tasks.compute.device._device_of", lambda runtime: torch.device(runtime.device))
    assert teacher_devices(replace(given, device="cuda")) == [torch.device("cuda", each) for each in (0, 1)]
    assert teacher_devices(RuntimeSettings(device="cuda:1")) == [torch.device("cuda:1")]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("device", "there"), [("auto", "2 from cuda:0"), ("cuda:1", "1 from cuda:1")])
def test_more_devices_than_there_are_are_refused(device: str, there: str) -> None:
    given = RuntimeSettings(device=device, teacher_devices=3)
    with pytest.raises(ValueError, match=rf"teacher_devices=3 is more than the {there} on that there are here\nset it"):
        check_device(given)
    check_device(replace(given, engine="ray", device="cuda"))  # what its workers have, Ray says


def test_a_teacher_is_not_spread_without_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"teacher_devices=2 needs CUDA devices, and this run is on cpu\nleave it at 1"
    ):
        check_device(RuntimeSettings(teacher_devices=2))


def test_what_a_device_lacks_is_said() -> None:
    with pytest.raises(ValueError, match="cuda_graphs needs a CUDA device, and this run is on cpu"):
        check_device(RuntimeSettings(device="cpu", cuda_graphs=True))


def test_what_a_cpu_is_slow_in_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = OptimizerSettings(precision="bfloat16"), OptimizerSettings()
    for has, settings, said in ((False, [single, half], True), (False, [single], False), (True, [half], False)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        remark = slow_precision(RuntimeSettings(device="cpu"), settings)
        assert (remark is not None) == said
        assert remark is None or remark.startswith("this CPU has no products in bfloat16, and is slow in bfloat16")


@pytest.mark.usefixtures("two_gpus")
def test_a_runs_device_chooses_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.compute.device.fast_precision", lambda kind: kind)
    for named, kind in (("auto", "cuda"), ("cpu", "cpu"), ("cuda:1", "cuda")):
        assert precision_of(RuntimeSettings(device=named)) == kind
