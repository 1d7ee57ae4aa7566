"""What code a stage depends on: an edit that changes meaning changes exactly the keys it should, and is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.store import fingerprint, keys
from tasks.store.artifacts import Store
from tasks.store.fingerprint import code_identity

STAGES = ("prepare", "teacher", "score", "pre_distill", "llmr", "decode", "measure")
PROJECT = fingerprint.PROJECT
REWARDS = "kd_core/losses/rewards.py"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code that can be edited."""
    for package in fingerprint.PACKAGES:
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PROJECT", tmp_path)
    return tmp_path


def identities() -> dict[str, dict[str, str]]:
    return {stage: code_identity(f"tasks.pairs.{stage}") for stage in STAGES}


def changed(before: dict[str, dict[str, str]]) -> set[str]:
    return {stage for stage, identity in identities().items() if identity != before[stage]}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_editing_the_reward_changes_llmr_and_decode_and_nothing_else(project: Path) -> None:
    before = identities()
    edit(project / REWARDS, "gain_BT / settings.reward_scale", "2 * gain_BT / settings.reward_scale")
    assert changed(before) == {"llmr", "decode"}


def test_the_edited_file_is_named(project: Path, tmp_path: Path) -> None:
    old = keys.key_record("llmr", "tasks.pairs.llmr", {"seed": 0})
    edit(project / REWARDS, "gain_BT / settings.reward_scale", "gain_BT * settings.reward_scale")
    new = keys.key_record("llmr", "tasks.pairs.llmr", {"seed": 0})
    assert keys.difference(old, new) == ["code: kd_core/losses/rewards.py"]
    assert keys.key_of(old) != keys.key_of(new)
    assert keys.explain(Store(tmp_path / "home"), "llmr", new) == "nothing built yet"


def test_comments_docstrings_and_layout_change_nothing(project: Path) -> None:
    before = identities()
    path = project / "kd_core" / "losses" / "rewards.py"
    edit(path, "BaselineKind = Literal", "# a comment\n\n\nBaselineKind = Literal")
    edit(path, '"""LLMR\'s reward:', '"""Another word on the reward:')
    edit(path, '    """G_t / reward_scale, clipped', '    """Scaled, then clipped')
    edit(path, "    return scaled_BT.clamp(", "    return  scaled_BT . clamp(")
    assert changed(before) == set()


def test_how_the_store_works_is_in_no_key(project: Path) -> None:
    before = identities()
    for name in ("artifacts", "stage", "progress", "checkpoints"):
        with (project / "tasks" / "store" / f"{name}.py").open("a") as file:
            file.write("\nANYTHING = 1\n")
    assert changed(before) == set()


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("data/cleaning/pairs.py", {"prepare"}),
        ("kd_core/rollout/beam_search.py", {"score", "decode"}),
        ("kd_core/metrics/bleu.py", {"measure"}),
        ("kd_core/train/llmr.py", {"llmr"}),
        ("kd_core/train/supervised.py", {"teacher", "pre_distill"}),
        ("kd_core/models/t5.py", {"teacher", "score", "pre_distill", "llmr", "decode"}),
        ("tasks/pairs/llmr.py", {"llmr"}),
        ("tasks/catalog/database.py", set()),
        ("flows/distill_outline.py", set()),
    ],
)
def test_each_file_reaches_the_stages_that_compute_with_it(project: Path, file: str, stages: set[str]) -> None:
    before = identities()
    with (project / file).open("a") as text:
        text.write("\nANYTHING = 1\n")
    assert changed(before) == stages


def test_imports_are_found_wherever_they_stand(project: Path) -> None:
    for path, text in {
        "tasks/a.py": "def f():\n    from kd_core import b\n",
        "kd_core/b.py": "from .deep import c\n",
        "kd_core/deep/__init__.py": "X = 1\n",
        "kd_core/deep/c.py": "from ..d import thing\nimport os\n",
        "kd_core/d.py": "thing = 1\nimport kd_core.masking as m\n",
    }.items():
        (project / path).parent.mkdir(exist_ok=True)
        (project / path).write_text(text)
    found = {name for name in code_identity("tasks.a") if not name.endswith("/__init__.py")}
    assert found == {"tasks/a.py", "kd_core/b.py", "kd_core/deep/c.py", "kd_core/d.py", "kd_core/masking.py"}
    assert "kd_core/deep/__init__.py" in code_identity("tasks.a")


def test_every_name_of_infrastructure_is_a_module() -> None:
    assert {name for name in fingerprint.INFRASTRUCTURE if fingerprint.module_path(name) is None} == set()


def test_code_is_the_same_to_a_python_that_drops_docstrings_and_asserts() -> None:
    program = (
        "import json; from tasks.store.fingerprint import code_identity as c; print(json.dumps(c('tasks.pairs.llmr')))"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == code_identity("tasks.pairs.llmr")
