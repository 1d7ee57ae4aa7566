"""Divergences from what a server tells of its likeliest tokens: as labels, and as the student writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from flows.methods import Method
from kd_core.rollout.teacher_labels import LabelSettings, asked_labels
from kd_core.train.batches import BatchSettings
from kd_core.train.divergence import ForwardKLSettings, GKDSettings, JSSettings, ReverseKLSettings
from tasks.endpoints import endpoint as endpoints
from tasks.endpoints.endpoint import EndpointError
from tasks.pairs.labels import label_outputs
from tasks.pairs.seqkd import SeqKDSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.preflight.served import check_reached
from tasks.store.artifacts import Artifact, Store
from tasks.store.stage import PlanRow, Run
from tests.tasks import tiny_runs
from tests.tasks.pairs.completions_server import completions_server
from tests.tasks.pairs.test_served import asking, log_of, run, served, write_teacher
from tests.tasks.tiny_runs import METHOD, TRAINING, made_by

V = 300  # tokens of the tiny teacher
COMMON: dict[str, Any] = {
    "steps": 3,
    "max_source_tokens": 32,  # as score's: labels are of what the teacher read then
    "sampling": METHOD.sampling,
    "batch": BatchSettings(micro_batch_rows=6, micro_batches=2),
    "optimizer": tiny_runs.OPTIMIZER,
    "validation_rows": 4,
}
BUCKET = LabelSettings(top_k=5, tail="bucket")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def labels_of(artifact: Artifact) -> Any:
    return pq.read_table(artifact.path / "labels-00000.parquet")


def weights(artifact: Artifact) -> torch.Tensor:
    return torch.cat([x.flatten() for x in load_file(artifact.path / "model" / "model.safetensors").values()])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all that are as they should be: what comes before a method is computed once."""
    return Store(tmp_path_factory.mktemp("store"))


def both(store: Store, directory: Path, method: Method, **changes: Any) -> tuple[Run, Run]:
    """The same run by the same teacher: here, and behind a server."""
    here = run(store, TeacherSettings(name=str(directory)), method=method, **changes)
    with completions_server(directory) as server:
        return here, run(store, served(server, directory), method=method, **changes)


# labels of what the teacher wrote


@pytest.mark.parametrize("tail", ["even", "bucket"])
def test_labels_and_what_they_teach_are_those_of_the_same_teacher_here(
    store: Store, directory: Path, tail: Any
) -> None:
    labels = replace(BUCKET, tail=tail)
    here, there = both(store, directory, ForwardKLSettings(**COMMON), labels=labels)
    ours, theirs = (labels_of(made_by(store, each, "label_outputs")) for each in (here, there))
    assert theirs.schema == ours.schema
    assert theirs.schema.metadata == ours.schema.metadata
    for name in ("id", "position", "token_ids"):
        assert theirs[name].equals(ours[name]), name
    for name in ("log_probs", "tail_log_prob"):
        ours_x, theirs_x = (torch.tensor(table[name].to_pylist()) for table in (ours, theirs))
        torch.testing.assert_close(theirs_x, ours_x, atol=2e-3, rtol=2e-3)  # a digit of float16
    before, ours_x, theirs_x = (
        weights(made_by(store, here, "pre_distill")),
        *(weights(made_by(store, each, "divergence")) for each in (here, there)),
    )
    assert (theirs_x - ours_x).norm() < 1e-2 * (ours_x - before).norm()
    logs = [log_of(made_by(store, each, "divergence")) for each in (here, there)]
    for step in range(1, 4):
        assert logs[1][step, "loss"] == pytest.approx(logs[0][step, "loss"], abs=2e-3)
    untold = made_by(store, there, "label_outputs").manifest().stats["mass_untold"]
    assert untold == pytest.approx(float(torch.tensor(ours["tail_log_prob"].to_pylist()).exp().mean()), abs=1e-2)


def test_labels_are_kept_as_a_teachers_here_are_and_what_is_untold_is_of_what_was_told(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float16, and the rest is what these leave of 1; the mass in the manifest has the server's own digits."""
    told: list[torch.Tensor] = []

    def heard(*asked: Any) -> Any:
        labels = asked_labels(*asked)
        told.append(torch.as_tensor(labels.log_prob_MK))
        return labels

    monkeypatch.setattr(label_outputs, "asked_labels", heard)
    store = Store(tmp_path)
    with completions_server(directory) as server:
        ran = run(store, served(server, directory), method=ForwardKLSettings(**COMMON), labels=BUCKET)
    made, (exact_MK,) = made_by(store, ran, "label_outputs"), told
    kept_MK, rest_M = (torch.tensor(labels_of(made)[name].to_pylist()) for name in ("log_probs", "tail_log_prob"))
    assert torch.equal(kept_MK, exact_MK.half().float())
    assert torch.equal(rest_M, torch.log1p(-kept_MK.exp().sum(dim=1).clamp(max=1)).half().float())
    untold, rounded = ((1 - x.double().exp().sum(dim=1)).clamp(min=0).mean().item() for x in (exact_MK, kept_MK))
    assert made.manifest().stats["mass_untold"] == pytest.approx(untold, rel=1e-9)
    assert untold != pytest.approx(rounded, rel=1e-6), "here float16 shows"


def test_soft_seqkd_and_pre_distillation_learn_from_them(store: Store, directory: Path) -> None:
    soft, method = replace(TRAINING, alpha=0.25, max_source_tokens=32), SeqKDSettings(**COMMON, alpha=0.0)
    here, there = both(store, directory, method, labels=BUCKET, pre_distill=soft)
    for stage in ("pre_distill", "seqkd"):
        ours, theirs = (log_of(made_by(store, each, stage)) for each in (here, there))
        assert theirs == pytest.approx(ours, abs=2e-3), stage


def test_a_server_that_dies_costs_no_label_that_was_paid_for(tmp_path: Path, directory: Path) -> None:
    many: list[Any] = []

    def dies(number: int, path: str, body: Any, answer: Any) -> tuple[int, Any]:
        many.extend([body] if body.get("prompt_logprobs") == 5 else [])
        return (200, answer) if len(many) < 20 else (500, {"error": {"message": "out of memory"}})

    store, changes = Store(tmp_path), {"labels": BUCKET, "method": ForwardKLSettings(**COMMON)}
    with completions_server(directory, dies) as server, pytest.raises(EndpointError, match="18 of 64 answers are kept"):
        run(store, served(server, directory, retries=0, requests_in_flight=1), **changes)
    paid = {json.dumps(body) for body in many[1:-1]}  # the first is the look before anything starts
    with completions_server(directory) as server:
        run(store, served(server, directory), **changes)
        asked = {json.dumps(body) for body in server.completions if body.get("prompt_logprobs") == 5}
    assert len(paid) > 15
    assert paid & asked == set()


# on the student's own samples

ON_POLICY: list[Method] = [
    ReverseKLSettings(**COMMON),
    GKDSettings(**COMMON, beta=0.3, student_share=1.0),
    GKDSettings(**COMMON, beta=0.0, student_share=1.0),
    GKDSettings(**COMMON, beta=1.0, student_share=1.0),
]


@pytest.mark.parametrize("method", ON_POLICY, ids=lambda each: f"{each.kind} {getattr(each, 'beta', '')}")
def test_of_the_whole_vocabulary_it_is_exact(store: Store, directory: Path, method: Any) -> None:
    labels = LabelSettings(top_k=2 * V, tail="bucket")
    here, there = both(store, directory, method, labels=labels)
    logs = [log_of(made_by(store, each, "divergence")) for each in (here, there)]
    for step in range(1, 4):
        for name in ("loss", "student_term", "grad_norm", "length", "student_tokens"):
            assert logs[1][step, name] == pytest.approx(logs[0][step, name], rel=1e-4), (step, name)
    assert "validation_reverse_kl" not in {name for _, name in logs[1]}
    assert logs[1][3, "validation_log_prob"] == pytest.approx(logs[0][3, "validation_log_prob"], abs=1e-3)


def test_of_a_few_tokens_it_is_less_and_teaches(store: Store, directory: Path) -> None:
    method = JSSettings(**COMMON | {"optimizer": replace(tiny_runs.OPTIMIZER, learning_rate=1e-2), "steps": 8})
    here, there = both(store, directory, method, labels=BUCKET)
    exact, found = (log_of(made_by(store, each, "divergence")) for each in (here, there))
    assert 0.1 * exact[1, "student_term"] < found[1, "student_term"] < exact[1, "student_term"]
    assert found[8, "student_term"] < 0.9 * found[1, "student_term"]
    assert found[1, "teacher_term"] == pytest.approx(exact[1, "teacher_term"], abs=1e-3), "of labels, both"


def test_how_many_are_asked_for_is_in_the_key_of_what_asks(store: Store, directory: Path) -> None:
    method = ReverseKLSettings(**COMMON)
    with completions_server(directory) as server:
        first = run(store, served(server, directory), method=method, labels=BUCKET)
        second = run(store, served(server, directory), method=method, labels=replace(BUCKET, top_k=6, draws=3))
        third = run(store, served(server, directory), method=method, labels=replace(BUCKET, batch_rows=3))
    made = [made_by(store, each, "divergence").key for each in (first, second, third)]
    assert made[0] == made[2] != made[1]


# how many a server tells


def capped(most: int) -> Any:
    """As vLLM under --max-logprobs."""

    def spoil(number: int, path: str, body: Any, answer: Any) -> tuple[int, Any]:
        wanted = body.get("prompt_logprobs") or 0
        problem = f"Requested prompt logprobs of {wanted}, which is greater than max allowed: {most}"
        return (400, {"error": {"message": problem}}) if wanted > most else (200, answer)

    return spoil


def fewer(number: int, path: str, body: Any, answer: Any) -> tuple[int, Any]:
    """As a server that tells three, whatever it is asked for; and the token itself."""
    if path == "/v1/completions":
        for entry in answer["choices"][0]["prompt_logprobs"][1:] if body.get("prompt_logprobs") else ():
            for name in [name for name, each in entry.items() if each["rank"] > 3][1:]:
                del entry[name]
    return 200, answer


@pytest.mark.parametrize(
    ("spoil", "problem", "advice"),
    [
        (
            capped(4),
            r"refuses the request \(400\): Requested prompt logprobs of 5, which is greater than max allowed: 4\n",
            "where it allows fewer log-probabilities than are asked for, start it with more (vLLM: --max-logprobs), or "
            "lower labels.top_k",
        ),
        (
            fewer,
            r"tells [34] log-probabilities of a position, not the 5 that it was asked for\n",
            "start it with more (vLLM: --max-logprobs=5), or set labels.top_k=",
        ),
    ],
)
@pytest.mark.parametrize(
    "method", [ForwardKLSettings(**COMMON), ReverseKLSettings(**COMMON)], ids=lambda x: str(x.kind)
)
def test_a_server_that_tells_fewer_is_told_so_before_anything_starts(
    tmp_path: Path, directory: Path, spoil: Any, problem: str, advice: str, method: Any
) -> None:
    store = Store(tmp_path)
    with completions_server(directory, spoil) as server, pytest.raises(EndpointError, match=problem) as caught:
        run(store, served(server, directory), method=method, labels=BUCKET)
    assert advice in str(caught.value).splitlines()[1]
    assert list((store.root / "artifacts").iterdir()) == []


def test_it_is_asked_for_no_more_than_it_has_to_tell(directory: Path) -> None:
    """A plan that computes no label and no divergence on samples looks at the server without them."""
    forward, reverse = ForwardKLSettings(), ReverseKLSettings()
    plans = [
        ([PlanRow("pre_distill", "", "miss"), PlanRow("label_outputs", "", "hit")], forward, False),
        ([PlanRow("divergence[forward_kl]", "", "miss"), PlanRow("score", "", "miss")], forward, False),
        ([PlanRow("divergence[reverse_kl]", "", "miss")], reverse, True),
        ([PlanRow("label_outputs", "", "miss")], forward, True),
    ]
    for plan, method, asks in plans:
        with completions_server(directory) as server:
            check_reached(served(server, directory), plan, BUCKET, method)
            assert [body["prompt_logprobs"] for body in server.completions] == [1, 5][: 1 + asks]
    check_reached(
        served("http://127.0.0.1:9/v1", directory), [PlanRow("divergence[forward_kl]", "", "miss")], BUCKET, forward
    )


def test_rows_that_stand_for_no_token_leave_their_places_empty(tmp_path: Path, directory: Path) -> None:
    """A padded embedding: here its rows are in no sum, there their mass is among the others'."""
    padded, prompt, target = tmp_path / "padded", [5, 6, 7], [8, 9]
    model = LlamaForCausalLM.from_pretrained(directory)
    model.resize_token_embeddings(V + 4, mean_resizing=False)
    model.lm_head.weight.data[V:] = model.lm_head.weight.data[:V].mean(0)
    with torch.no_grad():
        state = model.model(torch.tensor([[*prompt, *target]])).last_hidden_state[0, 2]
        model.lm_head.weight.data[V + 1] = state / state.norm() ** 2 * 20  # among the likeliest of the first position
    model.save_pretrained(padded)
    for path in directory.glob("tokenizer*"):
        (padded / path.name).write_bytes(path.read_bytes())
    with completions_server(padded) as server:
        asks = asking(tmp_path, server, directory)
        (told,) = asks.likeliest([prompt], [target], 6)
        again, nothing = asks.likeliest([prompt, prompt], [target, []], 6)  # a rank that only keeps step asks for none
        assert [body.get("prompt_logprobs") for body in server.completions].count(6) == 1
    assert told.ids_TK.shape == (2, 6)
    assert told.ids_TK.max() < V
    empty = told.log_prob_TK.isinf()
    assert empty.tolist() == [[False] * 5 + [True], [False] * 6]
    assert told.ids_TK[empty].tolist() == told.ids_TK[:1, 0].tolist()
    with torch.no_grad():
        log_p = model(torch.tensor([[*prompt, *target]])).logits[0, 2:4].log_softmax(1)
    best = log_p[0].topk(6).indices.tolist()
    assert V + 1 in best
    assert told.ids_TK[0, :5].tolist() == [each for each in best if each < V]
    torch.testing.assert_close(told.log_prob_TK[0, :5], log_p[0, told.ids_TK[0, :5].long()], atol=1e-5, rtol=0)
    assert nothing.ids_TK.shape == nothing.log_prob_TK.shape == (0, 6)
    assert torch.equal(again.log_prob_TK, told.log_prob_TK), "what lies in the store is what was told"
