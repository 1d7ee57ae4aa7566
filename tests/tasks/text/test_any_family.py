"""Running text with models that exist, of another family than GPT-Neo: every stage, and out again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM

from kd_core.models.loading import load_model, load_tokenizer
from kd_core.windows.cutting import contexts, window_targets
from kd_core.windows.last_block import trunk
from kd_core.windows.trunk import Trunk
from tasks.export.export import export_run
from tasks.store.artifacts import Artifact, Store
from tasks.store.stage import Run
from tasks.text.tokens import read_tokens
from tasks.text.window_files import trunk_writers
from tests.tasks.tiny_models import write_llama
from tests.tasks.tiny_texts import run_text

torch.set_num_threads(1)  # tensors this small only lose by being shared out


def begin_with_a_token(directory: Path) -> None:
    """As Llama's tokenizers do: another one than ends a text is put before every text."""
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["<s>"])
    begin = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    tokenizer.save(str(path))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config |= {"bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def run_llamas(folder: Path, *changes: str) -> tuple[Store, Run, Artifact]:
    named = {role: write_llama(folder / role, seed=seed) for seed, role in enumerate(("teacher", "student"))}
    for directory in named.values():
        begin_with_a_token(directory)
    fit = '{"alpha": 1.0, "epochs": 1, "optimizer": {"learning_rate": 0.01}}'
    changes = (
        f'teacher={{"name": "{named["teacher"]}", "fit": {fit}}}',
        f'student={{"name": "{named["student"]}"}}',
        "limit=900",
        "method.rounds=2",
        *changes,
    )
    (folder / "store").mkdir()
    store = Store(folder / "store")
    return store, *run_text(store, *changes)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run, Artifact]:
    return run_llamas(tmp_path_factory.mktemp("llamas"))


def made(first: tuple[Store, Run, Artifact], name: str) -> Artifact:
    store, run, _ = first
    found = next(stage for stage in run.stages if stage.name == name)
    return store.artifact(found.stage, found.key)


def test_the_text_is_read_by_the_models_tokenizer_and_nothing_is_put_before_it(
    first: tuple[Store, Run, Artifact],
) -> None:
    corpus = made(first, "tokens")
    tokenizer = load_tokenizer(corpus.path / "tokenizer")
    assert tokenizer("the")["input_ids"][0] == tokenizer.bos_token_id, "the case was not tested"
    ids = torch.cat([read_tokens(corpus, split) for split in ("train", "validation", "test")])
    assert tokenizer.bos_token_id not in ids.tolist()
    text = (first[0].root / "path.txt").read_text()
    assert " ".join(text.split()).startswith(" ".join(tokenizer.decode(ids).split()))


def test_the_cross_entropy_is_that_of_the_stock_model_on_exact_windows(first: tuple[Store, Run, Artifact]) -> None:
    *_, evaluation = first
    corpus, trained = made(first, "tokens"), made(first, "dagger_train[2]")
    model, text = load_model(trained.path / "model"), read_tokens(corpus, "test")
    targets = window_targets(len(text), 8, 3)
    with torch.no_grad():
        logits = model(contexts(text, targets, 8)).logits[:, -1, : len(load_tokenizer(corpus.path / "tokenizer"))]
    nats = float(torch.nn.functional.cross_entropy(logits, text[targets]))
    table = pq.read_table(evaluation.path / "metrics.parquet").to_pylist()
    values = {row["metric"]: row["value"] for row in table if row["system"] == "dad_dagger"}
    assert values["cross_entropy"] == pytest.approx(nats, abs=1e-5)


def test_only_the_last_block_and_the_final_norm_have_learnt(first: tuple[Store, Run, Artifact]) -> None:
    for name, start in (("fine_tune", "teacher"), ("dagger_train[2]", "student")):
        before = load_model(first[0].root.parent / start).state_dict()
        after = load_model(made(first, name).path / "model").state_dict()
        changed = {each for each, weight in after.items() if not torch.equal(weight, before[each])}
        assert changed == {each for each in before if each.startswith(("model.layers.1.", "model.norm."))}


def test_the_last_rounds_student_can_be_taken_away(first: tuple[Store, Run, Artifact], tmp_path: Path) -> None:
    store, run, _ = first
    assert export_run(store, run.record, tmp_path / "out") == "AutoModelForCausalLM"
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    trained = load_model(made(first, "dagger_train[2]").path / "model").state_dict()
    assert all(torch.equal(exported[name], weight) for name, weight in trained.items())
    assert "A causal language model (llama), trained by DaD-DAgger" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        ["labels.kind=hidden", "windows.mode=packed", "windows.predictions=6", "evaluation.sliding=false"],
        ["method.optimizer.precision=bfloat16"],
        ["method.optimizer.precision=bfloat16", "labels.kind=hidden"],
        ["student.trainable=all", "teacher.trainable=all", "labels.kind=sampled", "teacher.dtype=bfloat16"],
        ["windows.context=1", "method.features=float32", "teacher.fit=null"],
    ],
    ids=lambda changes: ",".join(changes[:2]),
)
def test_every_choice_runs_to_its_metrics(tmp_path: Path, changes: Sequence[str]) -> None:
    *_, evaluation = run_llamas(tmp_path, *changes)
    table = pq.read_table(evaluation.path / "metrics.parquet").to_pylist()
    values = {(row["system"], row["metric"]): row["value"] for row in table}
    assert values["dad_dagger", "perplexity"] > 1
    assert values["dad_dagger", "free_running_ce"] != values["student", "free_running_ce"]


def test_kept_states_are_no_larger_than_the_windows(first: tuple[Store, Run, Artifact]) -> None:
    parts = [
        np.load(next(made(first, "features[student]").path.glob(f"train-{part}-*.npy"))) for part in ("normed", "last")
    ]
    assert [part.shape[1] for part in parts] == [7, 1]
    corpus, model = made(first, "tokens"), load_model(first[0].root.parent / "student")
    text = read_tokens(corpus, "train")
    with torch.no_grad():
        below = trunk(model, contexts(text, window_targets(len(text), 8, 7)[:5], 8))
    for part, expected in zip(parts, (below.behind_BXD, below.last_BPD), strict=True):
        torch.testing.assert_close(torch.from_numpy(part[:5]), expected.half(), atol=1e-3, rtol=1e-3)


def test_states_that_the_kept_dtype_cannot_hold_are_refused() -> None:
    below = Trunk(torch.zeros(1, 2, 3), torch.full((1, 1, 3), 70_000.0))
    with pytest.raises(ValueError, match=r"^states up to 7e\+04 do not fit in float16\nset method\.features=float32"):
        list(trunk_writers(below, "float16"))
    assert len(list(trunk_writers(below, "float32"))) == 2
