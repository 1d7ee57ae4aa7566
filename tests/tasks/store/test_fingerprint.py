"""What code a stage depends on: an edit that changes meaning changes exactly the keys it should, and is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.store import fingerprint
from tasks.store.fingerprint import INFRASTRUCTURE, PACKAGES, PROJECT, reached, read_code, stages
from tasks.store.source import Sources

STAGES = ("prepare", "teacher", "score", "pre_distill", "llmr", "decode", "measure")
Identities = dict[str, dict[str, str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the code that can be edited."""
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def identity(code: Path | Sources, module: str, name: str) -> dict[str, str]:
    sources = code if isinstance(code, Sources) else Sources(code, PACKAGES, INFRASTRUCTURE)
    return {name: each.digest for name, each in read_code(sources, module, name).items()}


def identities(root: Path) -> Identities:
    """Of every stage there is, by its module."""
    places = [(module, name) for name, places in stages().items() for module, _ in places]
    sources = Sources(root, PACKAGES, INFRASTRUCTURE)
    return {module: identity(sources, module, name) for module, name in places}


def changed(before: Identities, root: Path) -> set[str]:
    """The stages for pairs whose identity is another one now."""
    sources = Sources(root, PACKAGES, INFRASTRUCTURE)
    places = {stage: f"tasks.pairs.{stage}" for stage in STAGES}
    return {stage for stage, module in places.items() if identity(sources, module, stage) != before[module]}


@pytest.fixture(scope="module")
def before() -> Identities:
    return identities(PROJECT)


def edit(root: Path, name: str, old: str, new: str) -> None:
    """Change one of our definitions, in whatever file it stands."""
    (path,) = {path for path in root.rglob("*.py") if name in path.read_text() and old in path.read_text()}
    path.write_text(path.read_text().replace(old, new))


def test_editing_the_reward_changes_llmr_and_decode_and_nothing_else(project: Path, before: Identities) -> None:
    edit(project, "def scale_and_clip", "gain_BT / settings.reward_scale", "2 * gain_BT / settings.reward_scale")
    assert changed(before, project) == {"llmr"}


def test_the_edited_definition_is_named_and_no_other(project: Path, before: Identities) -> None:
    edit(project, "def scale_and_clip", "gain_BT / settings.reward_scale", "2 * gain_BT / settings.reward_scale")
    now, old = identity(project, "tasks.pairs.llmr", "llmr"), before["tasks.pairs.llmr"]
    assert {name for name in {*now, *old} if now.get(name) != old.get(name)} == {"scale_and_clip"}


def test_editing_a_models_shape_leaves_the_measurement_alone(project: Path, before: Identities) -> None:
    edit(project, "class T5Shape", "dropout_rate=0.0", "dropout_rate=0.1")
    assert changed(before, project) == {"teacher", "pre_distill"}


def test_comments_docstrings_layout_and_annotations_of_functions_change_nothing(
    project: Path, before: Identities
) -> None:
    edit(project, "BaselineKind", "BaselineKind = Literal", "# a comment\n\n\nBaselineKind = Literal")
    edit(project, "def scale_and_clip", "    scaled_BT = ", "    scaled_BT: Tensor = ")
    edit(project, "def scale_and_clip", '    """G_t / reward_scale, clipped', '    """Scaled, then clipped')
    edit(project, "def scale_and_clip", "    return scaled_BT.clamp(", "    return  scaled_BT . clamp(")
    assert changed(before, project) == set()


def test_how_the_store_works_is_in_no_key(project: Path, before: Identities) -> None:
    for path in (project / "tasks" / "store").glob("*.py"):
        path.write_text(path.read_text() + "\nANYTHING = 1\nprint(ANYTHING)\n")
    assert changed(before, project) == set()


def test_every_file_moved_and_renamed_changes_no_stages_identity(project: Path, before: Identities) -> None:
    """The real code, all of it: kd_core becomes another package layout, each file under another name."""
    modules = [p for p in (project / "kd_core").rglob("*.py") if p.name != "__init__.py"]
    names = {}
    for path in modules:
        old = ".".join(path.relative_to(project).with_suffix("").parts)
        if old not in INFRASTRUCTURE:  # that one is known by its place
            names[old] = f"kd_core.elsewhere.{old.replace('.', '_')}_renamed"
    (project / "kd_core" / "elsewhere").mkdir()
    (project / "kd_core" / "elsewhere" / "__init__.py").touch()
    for path in project.rglob("*.py"):
        path.write_text(_renamed(path.read_text(), names))
    for path in modules:
        old = ".".join(path.relative_to(project).with_suffix("").parts)
        if old in names:
            path.rename(project / (names[old].replace(".", "/") + ".py"))
    after = identities(project)
    for module, code in before.items():
        assert {n: c for n, c in after[module].items() if code.get(n) != c} == {}
    assert after == before


def _renamed(text: str, names: dict[str, str]) -> str:
    """A file's imports, from where things have moved to. `from package import module` becomes one with `as`."""
    lines = []
    for line in text.splitlines():
        package, _, rest = line.strip().removeprefix("from ").partition(" import ")
        indent = line[: len(line) - len(line.lstrip())]
        if line.strip().startswith("from kd_core") and package in names:
            line = f"{indent}from {names[package]} import {rest}"
        elif line.strip().startswith("from kd_core") and package not in INFRASTRUCTURE:
            for name in [each.strip() for each in rest.split(",")]:
                module, _, alias = name.partition(" as ")
                where, _, new = names[f"{package}.{module}"].rpartition(".")
                lines.append(f"{indent}from {where} import {new} as {alias or module}")
            continue
        lines.append(line)
    return "\n".join(lines) + "\n"


def test_a_definition_that_nobody_mentions_changes_nothing(project: Path, before: Identities) -> None:
    for path in project.rglob("*.py"):
        path.write_text(path.read_text() + "\nANYTHING = 1\n")
    assert identities(project) == before


# --- what is followed, on small modules ---


def wrote(root: Path, **modules: str) -> Path:
    for name, text in modules.items():
        path = root / "tasks" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(root: Path) -> set[str]:
    return set(identity(root, "tasks.a", "f"))


@pytest.mark.parametrize(
    ("a", "found"),
    [
        ("from tasks.b import g\ndef f(): return g()", {"f", "g", "h"}),
        ("import tasks.b as x\ndef f(): return x.g()", {"f", "g", "h"}),
        ("import tasks.b\ndef f(): return tasks.b.g()", {"f", "g", "h"}),
        ("from tasks import b\ndef f(): return b.g", {"f", "g", "h"}),
        ("from . import b\ndef f(): return b.g", {"f", "g", "h"}),
        ("def f():\n    from tasks.b import g as k\n    return [k() for _ in range(3)]", {"f", "g", "h"}),
        ("from tasks.b import g\nX = g()\ndef f(y=X): return y", {"f", "X", "g", "h"}),
        ("from tasks.b import g\n@g\ndef f(): pass", {"f", "g", "h"}),
        ("from tasks.b import g\ndef f(y: g): return y", {"f", "g", "h"}),  # its methods may be called
        ("from tasks.b import g\nclass K:\n    def m(self): return g\ndef f(): return K", {"f", "K", "g", "h"}),
        ("from tasks.b import g\ndef f(g): return g", {"f"}),
        ("from tasks.b import g\ndef f():\n    g = 1\n    return (lambda: g)()", {"f"}),
        ("from tasks.b import g\ndef f(): return (lambda g: g)(g)", {"f", "g", "h"}),
        ("from tasks.b import g\ndef f(): return [g for g in g]", {"f", "g", "h"}),
        ("from tasks.b import g\ndef f(): return [g for g in ()]", {"f"}),
        (
            "from tasks import b\ndef f(): return [m.g for m in (b,)]",
            {"f", "g", "h", "OTHER"},
        ),  # any of it may be meant
        ("if True:\n    from tasks.b import g\ndef f(): return g", {"f", "g", "h", "<module>"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tasks.b import g\ndef f(x: g): pass", {"f"}),
        ("from tasks.c import g\ndef f(): return g()", {"f", "g", "h"}),  # handed on by another module
    ],
)
def test_what_a_function_reaches(tmp_path: Path, a: str, found: set[str]) -> None:
    b = "def g(): return h\ndef h(): return g\nOTHER = 1\n"
    root = wrote(tmp_path, a=a, b=b, c="from tasks.b import g\n")
    (root / "tasks" / "__init__.py").touch()
    assert names(root) == found


def test_what_importing_a_module_does_belongs_to_all_that_it_defines(tmp_path: Path) -> None:
    root = wrote(tmp_path, a="from tasks.b import g\ndef f(): return g", b="TABLE = {}\ndef g(): return TABLE\n")
    before = identity(root, "tasks.a", "f")
    wrote(root, b="TABLE = {}\ndef g(): return TABLE\nTABLE['x'] = 1\nprint(TABLE)\n")
    assert identity(root, "tasks.a", "f") != before


def test_two_of_one_name_are_told_apart_and_cannot_be_swapped(tmp_path: Path) -> None:
    root = wrote(tmp_path, a="from tasks import b, c\ndef f(): return b.g(), c.g()", b="def g(): return 1\n")
    wrote(root, c="def g(): return 2\n")
    before = identity(root, "tasks.a", "f")
    assert len(before) == 3
    wrote(root, a="from tasks import b, c\ndef f(): return c.g(), b.g()")
    assert identity(root, "tasks.a", "f") != before
    wrote(root, b="def g(): return 2\n", c="def g(): return 1\n")  # and the bodies with them: the same again
    assert identity(root, "tasks.a", "f") == before


def test_another_function_of_another_library_under_the_same_name_is_another_code(tmp_path: Path) -> None:
    root = wrote(tmp_path, a="from math import log\ndef f(x): return log(x)")
    before = identity(root, "tasks.a", "f")
    wrote(root, a="from math import log as ln\ndef f(x): return ln(x)")
    assert identity(root, "tasks.a", "f") == before
    wrote(root, a="from numpy import log\ndef f(x): return log(x)")
    assert identity(root, "tasks.a", "f") != before


def test_what_a_python_of_another_version_writes_otherwise_is_the_same(tmp_path: Path) -> None:
    """Quotes inside f-strings: `ast.unparse` chooses others from Python 3.12 on."""
    root = wrote(tmp_path, a="def f(x): return f\"{x['a']!r:>4} '\"")
    before = identity(root, "tasks.a", "f")
    wrote(root, a="def f(x): return f'''{x[\"a\"]!r:>4} \\''''")
    assert identity(root, "tasks.a", "f") == before


def test_a_function_without_source_has_no_identity() -> None:
    assert fingerprint.code_identity(print) == {}


def test_every_name_of_infrastructure_is_a_module() -> None:
    sources = fingerprint.sources()
    assert [name for name in INFRASTRUCTURE if sources.module(name) is None] == []


def test_code_is_the_same_to_a_python_that_drops_docstrings_and_asserts() -> None:
    program = (
        "import json; from tasks.store.fingerprint import reached;"
        "print(json.dumps({n: c.digest for n, c in reached('tasks.pairs.llmr', 'llmr').items()}))"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {n: c.digest for n, c in reached("tasks.pairs.llmr", "llmr").items()}
