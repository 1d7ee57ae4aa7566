"""What a run is told of its engine: refused in a line where it cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.engine.settings import RuntimeSettings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": 2}, "workers is for engine ray, and the engine is local\nadd: --engine ray"),
        ({"address": "auto"}, "address is for engine ray"),
        ({"gpus_per_worker": 1.0}, "gpus_per_worker is for engine ray"),
        ({"sharded": "teacher"}, "sharded=teacher is for engine ray, and the engine is local\nadd: --engine ray"),
        ({"engine": "ray", "sharded": "all"}, "sharded must be none, teacher, student or both, got 'all'"),
        (
            {"engine": "ray", "sharded": "both", "cuda_graphs": True},
            "cuda_graphs must be false where the student is sharded",
        ),
        ({"teacher_devices": 0}, "teacher_devices must be at least 1, got 0"),
        (
            {"engine": "ray", "sharded": "both", "teacher_devices": 2},
            "sharded=both and teacher_devices=2 both place the teacher's layers\nleave out one of them",
        ),
        (
            {"device": "cpu", "teacher_devices": 2},
            "teacher_devices=2 needs CUDA devices, and device is cpu\nleave it at",
        ),
        ({"device": "mps", "teacher_devices": 2}, "teacher_devices=2 needs CUDA devices, and device is mps"),
        (
            {"engine": "ray", "gpus_per_worker": 1.0, "teacher_devices": 2},
            "teacher_devices=2 needs as many GPUs for each worker, and gpus_per_worker is 1\nleave out gpus_per_worker",
        ),
        ({"engine": "ray", "device": "mps"}, "device mps cannot be shared by the processes of engine ray"),
        ({"engine": "ray", "workers": 0}, "workers must be at least 1, got 0"),
        ({"engine": "ray", "gpus_per_worker": -0.5}, "gpus_per_worker must be 0 or more, got -0.5"),
        ({"engine": "ray", "address": "somewhere"}, "address must be auto or HOST:PORT, got 'somewhere'"),
        ({"engine": "ray", "address": "ray://head:10001"}, "address must be auto or HOST:PORT, got 'ray://head:10001'"),
        ({"engine": "ray", "address": "head:"}, "address must be auto or HOST:PORT, got 'head:'"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"must be|is for|cannot be|needs|both place") as refused:
        RuntimeSettings(**given)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("address", [None, "auto", "head:6379", "10.0.0.1:6379"])
def test_what_can_be_meant_is_taken(address: str | None) -> None:
    RuntimeSettings(engine="ray", sharded="student", teacher_devices=2, gpus_per_worker=2.0)
    assert RuntimeSettings(engine="ray", workers=8, address=address, gpus_per_worker=0.5).workers == 8
