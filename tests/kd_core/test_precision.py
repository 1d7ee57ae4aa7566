"""A precision that settings leave to the run: that of its device, wherever they lie, and refused where nobody chose."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kd_core import precision
from kd_core.models.loading import ModelSettings, load_model
from kd_core.precision import check_precision, fast_precision, fill_precision, precision_field, precisions
from kd_core.train.state import OptimizerSettings, autocast


@dataclass(frozen=True, kw_only=True)
class Outer:
    dtype: str = precision_field()
    device: str = "auto"  # no precision
    inner: OptimizerSettings = field(default_factory=OptimizerSettings)


def test_what_is_left_to_the_run_is_the_devices_at_any_depth() -> None:
    auto = Outer(dtype="auto", inner=OptimizerSettings(precision="auto"))
    assert precisions(auto) == {"auto"}
    assert fill_precision(auto, lambda: "bfloat16") == Outer(
        dtype="bfloat16", inner=OptimizerSettings(precision="bfloat16")
    )
    given = Outer(dtype="bfloat16", inner=OptimizerSettings(precision="bfloat16_weights"))
    assert precisions(given) == {"bfloat16", "bfloat16_weights"}
    assert fill_precision(given, lambda: pytest.fail("nothing is left to the run")) is given


def test_what_computes_refuses_one_that_nobody_has_chosen(tmp_path: Path) -> None:
    for name, call in (
        ("precision", lambda: autocast(torch.device("cpu"), "auto")),
        ("dtype", lambda: load_model(tmp_path, dtype="auto")),
        ("dtype", lambda: ModelSettings(name="me/model", dtype="auto").identity()),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be float32 or bfloat16, got auto\na run fills it in"):
            call()
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or auto, got 'float16'"):
        check_precision("dtype", "float16")


@pytest.mark.parametrize(("products", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_is_fast_in_what_it_has_products_of(products: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: products)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert fast_precision("cpu") == chosen


def test_a_gpu_is_asked_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: pytest.fail("it takes memory of the GPU"))
    precision._cuda_has_bfloat16.cache_clear()
    here = "bfloat16" if torch.cuda.is_available() else "float32"
    assert fast_precision("cuda") == here
    precision._cuda_has_bfloat16.cache_clear()
    monkeypatch.setattr(precision.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="True\n"))
    assert fast_precision("cuda") == "bfloat16"
    precision._cuda_has_bfloat16.cache_clear()
    assert fast_precision("mps") == "float32"
