"""Students that are an adapter on a base, and other ways to train in less memory, through every stage and exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tasks.compute.models
from flows.distill_outline import OUTLINE, check, pipeline
from flows.settings import jsonable, validate
from kd_core.models.backends.lora import LoraSettings
from kd_core.models.loading import load_tokenizer, save_tokenizer
from kd_core.models.policy import encode
from kd_core.models.shapes import T5Shape
from kd_core.models.token_rows import TokenRows
from kd_core.train.batches import BatchSettings
from kd_core.train.state import OptimizerSettings
from tasks.compute.models import load_artifact, load_pair
from tasks.engine.settings import RuntimeSettings
from tasks.export.export import export_run
from tasks.pairs.student import StudentSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.store.accept import Acceptable, accept
from tasks.store.artifacts import Artifact, Store
from tasks.store.keys import canonical
from tasks.store.maintenance import unreferenced
from tasks.store.progress import NullReporter
from tasks.store.stage import Run, open_run
from tests.flows.test_methods import SHORT, method
from tests.tasks.tiny_models import write_llama, write_model
from tests.tasks.tiny_runs import EVALUATION, METHOD, RUNTIME, SCORE, TRAINING, write_pairs

CPU = torch.device("cpu")
LORA = LoraSettings(rank=2, alpha=8.0, dropout=0.1)
ON_TEACHER = StudentSettings(from_="teacher", lora=LORA)
BATCH = BatchSettings(micro_batch_rows=8, micro_batches=2)
MASTERS = OptimizerSettings(learning_rate=1e-3, precision="bfloat16_weights")


class Killer(NullReporter):
    """Ends the run at an update of a stage, as a kill would."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def stage_progress(self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float]) -> None:
        if unit == "steps" and stage == self.stage and done == 2:
            raise KeyboardInterrupt


def distil(
    store: Store,
    student: StudentSettings,
    chosen: Any = METHOD,
    *,
    dtype: Any = "float32",
    teacher: Path | None = None,
    pre_distill: Any = TRAINING,
    runtime: RuntimeSettings = RUNTIME,
    killed_in: str = "",
) -> tuple[Run, dict[str, Artifact]]:
    directory = teacher or store.root.parent / "teacher"
    if not directory.exists():
        write_llama(directory)
    with open_run(store, name="tiny", runtime=runtime, reporter=Killer(killed_in)) as run:
        pipeline(
            dataset=write_pairs(store.root / "pairs.csv"),
            teacher=TeacherSettings(name=str(directory), dtype=dtype),
            student=student,
            score=SCORE,
            pre_distill=replace(pre_distill, max_steps=3, batch=BATCH),
            method=replace(chosen, steps=3, batch=BATCH),
            evaluation=EVALUATION,
        )
    return run, {each.stage: store.artifact(each.stage, each.key) for each in run.stages}


def weights(made: Mapping[str, Artifact], stage: str) -> bytes:
    return (made[stage].path / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store: what does not depend on the method is built once."""
    return Store(tmp_path_factory.mktemp("adapters") / "store")


@pytest.mark.parametrize("kind", ["llmr", "seqkd", "forward_kl", "gkd", "minillm"])
def test_every_method_goes_on_with_the_adapter_and_its_student_is_exported_merged(
    store: Store, tmp_path: Path, kind: str
) -> None:
    run, made = distil(store, ON_TEACHER, METHOD if kind == "llmr" else method(kind=kind, **SHORT))
    stage = {"forward_kl": "divergence", "gkd": "divergence"}.get(kind, kind)
    start, end = (
        load_file(made[each].path / "adapter" / "adapter_model.safetensors") for each in ("pre_distill", stage)
    )
    assert start.keys() == end.keys()
    assert not all(torch.equal(start[name], end[name]) for name in start)
    assert all("model" not in {path.name for path in made[each].path.iterdir()} for each in ("pre_distill", stage))
    assert set(pq.read_table(made["evaluate"].path / "metrics.parquet")["system"].to_pylist()) > {kind}
    stats = made["pre_distill"].manifest().stats
    assert stats["trained_parameters"] == sum(tensor.numel() for tensor in start.values())

    assert export_run(store, run.record, tmp_path / "out") == "AutoModelForCausalLM"
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.num_parameters() == stats["parameters"]
    loaded, ids = load_artifact(made[stage], CPU), torch.tensor([[5, 60, 7, 8]])
    with torch.no_grad():
        theirs, ours = (each(input_ids=ids).logits for each in (exported, loaded.model))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from its teacher's own weights. What was trained is a LoRA adapter of rank 2" in card


def test_a_base_that_teaches_is_loaded_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = distil(store, ON_TEACHER)
    loads = []
    original = tasks.compute.models.load_model

    def counted(*arguments: Any, **named: Any) -> Any:
        loads.append(arguments[0])
        return original(*arguments, **named)

    monkeypatch.setattr(tasks.compute.models, "load_model", counted)
    teacher, student = load_pair(made["teacher"], made["llmr"], CPU)
    assert len(loads) == 1
    shared = {p.data_ptr() for p in teacher.model.parameters()}
    assert shared < {p.data_ptr() for p in student.model.parameters()}
    alone = load_artifact(made["teacher"], CPU)
    rows = TokenRows.encode(student.tokenizer, ["the cat sat"], 16).batch(torch.tensor([0]), 0)
    with torch.no_grad():
        memories = [encode(each.model, *rows).keys_values[1][0] for each in (teacher, alone, student)]  # type: ignore[attr-defined]
    assert torch.equal(memories[0], memories[1])
    assert not torch.equal(memories[0], memories[2])
    loads.clear()
    distil(store, ON_TEACHER, replace(METHOD, entropy_bonus=0.5))  # llmr and decode, with nothing before them
    assert len(loads) == 2
    assert made["teacher"] not in {each.artifact for each in unreferenced(store, days=1, grace_hours=0)}


@pytest.mark.parametrize(("stage", "dtype"), [("pre_distill", "float32"), ("llmr", "bfloat16")])
def test_killed_and_resumed_it_is_the_same_byte_for_byte(store: Store, tmp_path: Path, stage: str, dtype: Any) -> None:
    _, whole = distil(store, ON_TEACHER, dtype=dtype)
    again, each_step = Store(tmp_path / "again"), replace(RUNTIME, checkpoint_seconds=0)
    write_llama(tmp_path / "teacher")
    with pytest.raises(KeyboardInterrupt):
        distil(again, ON_TEACHER, dtype=dtype, runtime=each_step, killed_in=stage)
    saved = next((again.root / ".checkpoints").glob(f"{stage}-*/step-*/state.safetensors"))
    assert all("lora_" in name for name in load_file(saved) if name.startswith("model."))
    _, made = distil(again, ON_TEACHER, dtype=dtype)
    for each in ("pre_distill", "llmr"):
        assert weights(made, each) == weights(whole, each), each


def test_running_blocks_again_changes_no_key_and_no_byte(store: Store, tmp_path: Path) -> None:
    _, plain = distil(store, ON_TEACHER)
    write_llama(tmp_path / "teacher")
    less_memory = replace(RUNTIME, gradient_checkpointing=True)
    _, made = distil(Store(tmp_path / "store"), ON_TEACHER, runtime=less_memory)
    for each in ("pre_distill", "llmr"):
        assert made[each].key == plain[each].key
        assert weights(made, each) == weights(plain, each)


def test_what_a_student_was_told_of_chats_and_ends_stays_with_its_adapter(tmp_path: Path) -> None:
    teacher, student = write_llama(tmp_path / "chats"), write_llama(tmp_path / "base", seed=1)
    template = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    tokenizer = load_tokenizer(teacher)
    tokenizer.chat_template = template
    save_tokenizer(tokenizer, teacher)
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"eos_token_id": [*config["eos_token_id"], 9]}))
    run, made = distil(Store(tmp_path / "store"), StudentSettings(name=str(student), lora=LORA), teacher=teacher)
    for stage in ("pre_distill", "llmr"):
        loaded = load_artifact(made[stage], CPU)
        assert loaded.tokenizer.chat_template == template
        assert 9 in loaded.model.config.eos_token_id
    assert load_artifact(made["llmr"], CPU).model.generation_config.eos_token_id == loaded.model.config.eos_token_id
    export_run(Store(tmp_path / "store"), run.record, tmp_path / "out")
    assert 9 in json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert load_tokenizer(tmp_path / "out").chat_template == template


def test_a_named_student_and_a_t5_take_adapters_too(tmp_path: Path) -> None:
    teacher, student = write_model(tmp_path / "t0", own_head=True), write_model(tmp_path / "t5", own_head=False, seed=1)
    store = Store(tmp_path / "store")
    run, made = distil(store, StudentSettings(name=str(student), lora=LORA), teacher=teacher)
    base = json.loads((made["llmr"].path / "adapter" / "base.json").read_text())
    assert base["name"] == str(student)
    assert export_run(store, run.record, tmp_path / "out") == "AutoModelForSeq2SeqLM"
    shutil.rmtree(student)
    with pytest.raises(ValueError, match=r"t5, which is not there any more\nput the same model back there"):
        load_artifact(made["llmr"], CPU)


def test_a_base_that_was_accepted_under_another_key_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    _, made = distil(store, ON_TEACHER)
    before, known = load_artifact(made["llmr"], CPU), store.artifact("teacher", "0" * 32)
    record = made["teacher"].manifest().key_record | {"code": {"teacher": "of another day"}}
    assert accept(store, Acceptable(made["teacher"], known, record, "code"), "distill accept")
    shutil.rmtree(made["teacher"].path)  # as gc does once no run refers to it by its old key
    after = load_artifact(made["llmr"], CPU)
    pairs = zip(before.model.parameters(), after.model.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    shutil.rmtree(known.path)
    with pytest.raises(ValueError, match=r"teacher/\w+ is gone\nrun again"):
        load_artifact(made["llmr"], CPU)


def test_a_student_in_bfloat16_leaves_its_float32_masters(tmp_path: Path) -> None:
    write_llama(tmp_path / "teacher")
    other = write_llama(tmp_path / "other", seed=1)
    student, chosen = StudentSettings(name=str(other)), replace(METHOD, optimizer=MASTERS)
    given: dict[str, Any] = {"pre_distill": replace(TRAINING, optimizer=MASTERS)}
    _, made = distil(Store(tmp_path / "store"), student, chosen, **given)
    again, each_step = Store(tmp_path / "again"), replace(RUNTIME, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        distil(again, student, chosen, runtime=each_step, killed_in="llmr", **given)
    _, resumed = distil(again, student, chosen, **given)
    for each in ("pre_distill", "llmr"):
        found = [load_file(made_by[each].path / "model" / "model.safetensors") for made_by in (made, resumed)]
        assert {tensor.dtype for tensor in found[0].values()} == {torch.float32}
        assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in found[0].values())
        assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_what_lora_is_given_is_in_the_key_and_nothing_where_it_is_not() -> None:
    plain = StudentSettings(name="a/b")
    assert "lora" not in canonical(plain, "student")
    assert canonical(replace(plain, lora=LORA), "student")["lora"] == {
        "rank": 2, "alpha": 8.0, "targets": "all-linear", "dropout": 0.1
    }  # fmt: skip


def test_lora_is_set_by_name_and_survives_the_record_of_a_run() -> None:
    known = {"student": OUTLINE.parameters["student"]}
    given = {"student": {"from": "teacher", "lora": {"rank": 4, "targets": ["q_proj"]}}}
    (student,) = validate(known, given).values()
    assert student.lora == LoraSettings(rank=4, targets=("q_proj",))
    assert validate(known, jsonable({"student": student}))["student"] == student
    with pytest.raises(ValueError, match=r"no setting student.lora.ranks; did you mean student.lora.rank\?"):
        validate(known, {"student": {"from": "teacher", "lora": {"ranks": 4}}})


def test_a_wrong_target_is_said_before_anything_starts(tmp_path: Path) -> None:
    teacher = TeacherSettings(name=str(write_llama(tmp_path / "llama")))
    for student in (
        StudentSettings(from_="teacher", lora=replace(LORA, targets=("q",))),
        StudentSettings(name=str(write_llama(tmp_path / "other", seed=1)), lora=replace(LORA, targets=("q",))),
    ):
        with pytest.raises(
            ValueError, match=r"^student.lora.targets: a llama has no matrix 'q'\nit has: down_proj, gate"
        ):
            check({"teacher": teacher, "student": student})
    adapted = StudentSettings(from_="teacher", lora=LORA)
    assert check({"teacher": teacher, "student": adapted}) == check(
        {"teacher": teacher, "student": replace(adapted, lora=None)}
    )
    t5 = TeacherSettings(name=str(write_model(tmp_path / "t5", own_head=False)))
    slower = "a t5 with an adapter is run by its own forward pass, on padded rows: right, but slower than without"
    assert check({"teacher": t5, "student": adapted})[-1] == f"student.lora: {slower}"


def test_a_described_student_has_nothing_to_adapt() -> None:
    with pytest.raises(ValueError, match="nothing that lora could adapt"):
        StudentSettings(shape=T5Shape(), lora=LORA)
