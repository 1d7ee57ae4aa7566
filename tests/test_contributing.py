"""CONTRIBUTING says which files a method, a corpus and a metric take. Here each is added, in a copy, and used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_FILES_OF_A_METHOD = 3


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code, without tests, to be added to."""
    for package in ("flows", "tasks", "kd_core", "data"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", tmp_path / "prefect.yaml")
    return tmp_path


def edit(path: Path, *changes: tuple[str, str]) -> Path:
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1, (path, old)
        text = text.replace(old, new)
    path.write_text(text)
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def run(copy: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "DISTILL_HOME": str(copy / "home")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_method_is_a_loop_a_stage_and_a_line(copy: Path) -> None:
    touched = {
        write(
            copy / "kd_core" / "train" / "toy.py",
            "from dataclasses import dataclass\nfrom typing import Literal\n\n"
            "from kd_core.train.budget import Budget\n\n\n"
            "@dataclass(frozen=True, kw_only=True)\n"
            "class ToySettings(Budget):\n"
            '    kind: Literal["toy"] = "toy"\n'
            "    strength: float = 2.0\n",
        ),
        write(
            copy / "tasks" / "pairs" / "toy.py",
            "from kd_core.train.toy import ToySettings\n"
            "from tasks.store.artifacts import Artifact\nfrom tasks.store.stage import Build, stage\n\n\n"
            "@stage\n"
            "def toy(build: Build, corpus: Artifact, student: Artifact, settings: ToySettings, seed: int) -> None:\n"
            '    (build.dir / "model").mkdir()\n',
        ),
        edit(
            copy / "flows" / "methods.py",
            (
                "from tasks.pairs.seqkd import",
                "from kd_core.train.toy import ToySettings\nfrom tasks.pairs.toy import toy\n"
                "from tasks.pairs.seqkd import",
            ),
            (
                '    | Annotated[SeqKDSettings, Tag("seqkd")]\n',
                '    | Annotated[SeqKDSettings, Tag("seqkd")]\n    | Annotated[ToySettings, Tag("toy")]\n',
            ),
            (
                "        case SeqKDSettings():\n",
                "        case ToySettings():\n"
                "            return toy(corpus=corpus, student=student, settings=method, seed=seed)\n"
                "        case SeqKDSettings():\n",
            ),
        ),
    }
    assert len(touched) <= MOST_FILES_OF_A_METHOD
    plan = run(copy, "-m", "flows.cli.main", "plan", "llmr-chitchat", "--set", 'method={"kind": "toy", "strength": 3}')
    assert [line.split()[0] for line in plan.splitlines() if line.startswith(("toy", "decode[toy]"))] == [
        "toy",
        "decode[toy]",
    ]


def test_a_corpus_that_a_package_brings_is_one_file(copy: Path) -> None:
    edit(
        copy / "data" / "reading" / "packaged.py",
        ('PackagedName = Literal["chitchat",', 'PackagedName = Literal["toy", "chitchat",'),
        (
            "PACKAGED: dict[str, Packaged] = {\n",
            "def toy_rows() -> list[RawRow]:\n"
            '    return [(str(n), f"question {n}", f"answer {n}", None) for n in range(100)]\n\n\n'
            "PACKAGED: dict[str, Packaged] = {\n"
            '    "toy": Packaged(package="pytest", unit="rows", rows=toy_rows),\n',
        ),
    )
    program = (
        "from pathlib import Path\nfrom data.reading.specs import DatasetSettings\n"
        "from tasks.pairs.prepare import prepare\nfrom tasks.store.artifacts import Store\n"
        "from tasks.store.stage import open_run\n"
        "with open_run(Store(Path('home')), name='toy'):\n"
        "    made = prepare(dataset=DatasetSettings(source='toy'), seed=0, limit=None)\n"
        "print(made.manifest().key_record['settings']['dataset']['source'], *(p.name for p in made.path.iterdir()))"
    )
    said = run(copy, "-c", program)
    assert said.startswith("toy ")
    assert "train.parquet" in said


def test_a_metric_is_its_module_and_its_name(copy: Path) -> None:
    write(
        copy / "kd_core" / "metrics" / "toy.py",
        "from collections.abc import Sequence\n\nfrom kd_core.metrics.bootstrap import Measure\n"
        "from kd_core.metrics.ratios import mean\n\n\n"
        "def question_marks(texts: Sequence[str]) -> Measure:\n"
        '    return mean("question_marks", "per output", [float(text.count("?")) for text in texts])\n',
    )
    edit(
        copy / "kd_core" / "metrics" / "outputs.py",
        (
            "from kd_core.metrics.words import words\n",
            "from kd_core.metrics.toy import question_marks\nfrom kd_core.metrics.words import words\n",
        ),
        ('    "agreement",\n]', '    "agreement",\n    "toy",\n]'),
        (
            '        case "per":\n',
            '        case "toy":\n            return [question_marks(outputs.predictions)]\n        case "per":\n',
        ),
    )
    program = (
        "from kd_core.metrics.outputs import Outputs, References, evaluate_outputs\n"
        "outputs = Outputs(predictions=['a?', 'b'], num_tokens=[1, 1], truncated=[0, 0])\n"
        "print(evaluate_outputs(outputs, References(['c', 'd'], resamples=10), ['toy']).metrics)"
    )
    assert "question_marks" in run(copy, "-c", program)
    plan = run(copy, "-m", "flows.cli.main", "plan", "llmr-chitchat", "--set", 'evaluation.metrics=["toy"]')
    assert "measure[llmr]" in plan
