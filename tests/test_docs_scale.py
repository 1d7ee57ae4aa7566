"""The examples that docs/scale.md names start runs that there are, with options that there are, on the pinned Ray."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import yaml

from flows.catalogue import load_catalogue
from flows.cli.commands import _assignments
from flows.cli.main import parser
from tasks.engine.settings import RuntimeSettings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text()


def started(command: str) -> list[str]:
    """What a command line of ours sets, of a run that is in the catalogue."""
    arguments = parser().parse_args(shlex.split(command)[1:])
    assert arguments.name in load_catalogue(ROOT / "prefect.yaml")
    return _assignments(arguments)


def test_every_command_of_the_page_is_taken() -> None:
    commands = re.findall(r"^distill run [^#\n]*", PAGE, flags=re.MULTILINE)
    assert [started(each) for each in commands] == [
        ["runtime.engine=ray", "runtime.workers=8"],
        ["runtime.engine=ray", "runtime.address=head:6379"],
        ["runtime.engine=ray", "runtime.gpus_per_worker=0.5"],
        ["runtime.teacher_devices=4"],
        ["runtime.teacher_devices=4", "runtime.engine=ray", "runtime.workers=2"],
        ["runtime.sharded=teacher", "runtime.engine=ray", "runtime.workers=8"],
    ]


def test_every_setting_of_the_engine_is_explained() -> None:
    mine = [field.name for field in fields(RuntimeSettings)]
    assert [name for name in mine[mine.index("engine") :] if f"| `{name}` |" not in PAGE] == []


def test_the_job_for_kubernetes_starts_a_run_on_the_pinned_ray() -> None:
    job = yaml.safe_load((ROOT / "examples" / "kuberay.yaml").read_text())
    assert started(job["spec"]["entrypoint"]) == ["runtime.engine=ray", "runtime.address=auto"]
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_script_for_slurm_starts_a_run() -> None:
    script = ROOT / "examples" / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    # with a token alone the first node asks for it, and the others do not know that they have to send it
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN" in script.read_text()
    (command,) = re.findall(r"^ +(distill run .*)$", script.read_text(), flags=re.MULTILINE)
    default = re.search(r'run="\$\{1:-(.*)\}"', script.read_text())
    assert default is not None
    assert started(command.replace('"$run"', default[1])) == ["runtime.engine=ray", "runtime.address=auto"]
