"""A precision that settings leave to the run: that of its device, wherever they lie, and refused where nobody chose."""

from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


def test_a_cpu_whose_torch_has_no_mkldnn_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: pytest.fail("there is no such function"))
    assert fast_precision("cpu") == "float32"


@pytest.fixture
def not_asked_yet() -> Iterator[None]:
    precision._cuda_has_bfloat16.cache_clear()
    yield
    precision._cuda_has_bfloat16.cache_clear()


@pytest.mark.usefixtures("not_asked_yet")
def test_a_gpu_that_only_plays_bfloat16_is_not_fast_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a T4, which PyTorch says supports it."""

    def here(command: list[str], **_: Any) -> SimpleNamespace:
        with redirect_stdout(StringIO()) as said:
            exec(command[-1])
        return SimpleNamespace(stdout=said.getvalue())

    monkeypatch.setattr(precision.subprocess, "run", here)
    for products, chosen in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=products: including_emulation or has
        )
        precision._cuda_has_bfloat16.cache_clear()
        assert fast_precision("cuda") == chosen


@pytest.mark.usefixtures("not_asked_yet")
def test_a_gpu_that_gives_no_answer_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "ASK_CUDA", "raise SystemExit('no driver')")
    assert fast_precision("cuda") == "float32"


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
