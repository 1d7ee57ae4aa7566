"""A round of training on ready-made windows against the whole model on all of them, in float64."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from kd_core.losses.soft_targets import TopKLabels
from kd_core.models.policy import head_of, laid_out
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState
from kd_core.windows.cutting import contexts, followers, window_targets
from kd_core.windows.last_block import Trainable, set_trainable, trunk
from kd_core.windows.train import Tokens, Windows, WindowTrainingSettings, train_windows, window_loss
from tests.kd_core.windows.test_gpt_neo import V, exact_attention, tiny_gpt_neo

__all__ = ["exact_attention"]

H = 6
TEXT = torch.randint(0, V, (60,), generator=torch.Generator().manual_seed(3))
TARGETS = window_targets(len(TEXT), H)
CONTEXTS = contexts(TEXT, TARGETS, H)
SETTINGS = WindowTrainingSettings(
    alpha=0.3, epochs=2, patience=0, batch_rows=16, optimizer=OptimizerSettings(learning_rate=1e-2)
)


def teacher_distributions() -> torch.Tensor:
    teacher = tiny_gpt_neo(layers=2, seed=9)
    with torch.no_grad():
        p: torch.Tensor = teacher(CONTEXTS).logits[:, -1].softmax(1)
    return p


def ready(model: torch.nn.Module, p: torch.Tensor, rows: slice) -> Windows:
    log_p, ids = p.log().topk(V, dim=1)
    labels = TopKLabels(ids[rows].int(), log_p[rows])
    return Windows(trunk(model, CONTEXTS[rows]), next_tokens(rows)[:, None], labels)


def next_tokens(rows: slice) -> torch.Tensor:
    return TEXT[TARGETS[rows]]


def started() -> TrainState:
    model = tiny_gpt_neo(layers=2)
    set_trainable(model, "last_block")
    return TrainState.start(model, SETTINGS.optimizer)


def train(state: TrainState, settings: WindowTrainingSettings = SETTINGS) -> list[StepMetrics]:
    p = teacher_distributions()
    windows = ready(state.model, p, slice(0, 40)), ready(state.model, p, slice(40, None))
    return list(train_windows(state, windows[:1], windows[1], settings, seed=7))


@pytest.mark.usefixtures("exact_attention")
def test_losses_and_weights_are_those_of_the_whole_model_on_whole_windows() -> None:
    state = started()
    rows = train(state)

    plain, p = tiny_gpt_neo(layers=2), teacher_distributions()
    optimizer = torch.optim.Adam(set_trainable(plain, "last_block"), lr=1e-2)
    losses = []
    for epoch in range(2):
        for index in torch.from_numpy(np.random.default_rng([7, epoch]).permutation(40)).split(16):
            log_q = F.log_softmax(plain(CONTEXTS[index]).logits[:, -1], 1)
            nll = -log_q.gather(1, next_tokens(slice(0, 40))[index, None]).squeeze(1)
            kd = -(p[index] * log_q).sum(1)
            loss = (0.3 * nll + 0.7 * kd).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert [row.values["loss"] for row in rows] == pytest.approx(losses, abs=1e-11)
    best = min(rows, key=lambda row: row.values.get("validation_loss", np.inf))
    assert best is rows[-1], "the weights that were kept are not the last ones, so they cannot be compared"
    for a, b in zip(state.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_the_frozen_part_stays_as_it_was() -> None:
    state, before = started(), tiny_gpt_neo(layers=2)
    train(state)
    for (name, a), b in zip(state.model.named_parameters(), before.parameters(), strict=True):
        trained = name.startswith(("transformer.h.1.", "transformer.ln_f."))
        assert torch.equal(a, b) != trained, name


def test_dropout_is_off_whatever_state_the_model_is_in() -> None:
    expected = [row.values for row in train(started())]
    state, p = started(), teacher_distributions()
    windows = ready(state.model, p, slice(0, 40)), ready(state.model, p, slice(40, None))
    for module in state.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    state.model.train()
    assert [row.values for row in train_windows(state, windows[:1], windows[1], SETTINGS, seed=7)] == expected


def test_a_resumed_round_ends_with_the_same_bytes(tmp_path: Path) -> None:
    unbroken = started()
    rows = train(unbroken)
    for killed_at in range(1, len(rows)):
        broken, p = started(), teacher_distributions()
        windows = ready(broken.model, p, slice(0, 40)), ready(broken.model, p, slice(40, None))
        for row in train_windows(broken, windows[:1], windows[1], SETTINGS, seed=7):
            if row.step == killed_at:
                break
        broken.save(tmp_path, [])
        resumed = started()
        resumed.load(tmp_path)
        assert [r.values for r in train(resumed)] == [r.values for r in rows[killed_at:]]
        for a, b in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_training_stops_when_validation_gets_worse_and_keeps_the_best() -> None:
    state = started()
    wild = replace(SETTINGS, epochs=30, patience=2, optimizer=OptimizerSettings(learning_rate=0.3, max_grad_norm=0))
    losses = [row.values["validation_loss"] for row in train(state, wild) if "validation_loss" in row.values]
    assert len(losses) < 30
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2
    held_out = ready(state.model, teacher_distributions(), slice(40, None))
    assert window_loss(state.model, held_out, 0.3)["loss"] == pytest.approx(min(losses), abs=1e-12)


def test_without_a_teacher_the_loss_is_the_cross_entropy() -> None:
    model = tiny_gpt_neo(layers=2)
    windows = Windows(trunk(model, CONTEXTS), next_tokens(slice(None))[:, None], None)
    with torch.no_grad():
        stock = F.cross_entropy(model(CONTEXTS).logits[:, -1], next_tokens(slice(None)))
    assert window_loss(model, windows, 1.0)["nll"] == pytest.approx(float(stock), abs=1e-6)


def test_no_windows_are_refused() -> None:
    model = tiny_gpt_neo(layers=2)
    none = Windows(trunk(model, CONTEXTS[:0]), next_tokens(slice(0, 0))[:, None], None)
    with pytest.raises(ValueError, match="there are no windows to train on"):
        next(train_windows(TrainState.start(model, SETTINGS.optimizer), [none], none, SETTINGS, 0))


@pytest.mark.parametrize("unlabelled", ["train", "validation"])
def test_windows_without_labels_are_refused_before_training(unlabelled: str) -> None:
    state, p = started(), teacher_distributions()
    before = [each.clone() for each in state.model.parameters()]
    parts = [ready(state.model, p, rows) for rows in (slice(0, 7), slice(7, 40))]
    held_out = ready(state.model, p, slice(40, None))
    if unlabelled == "train":
        parts[1] = replace(parts[1], labels=None)
        says = r"alpha 0.3 needs the teacher's labels, and part 1 of the training windows \(33 windows\) has none\n"
    else:
        held_out, says = replace(held_out, labels=None), "and the validation set .* has none\n"
    with pytest.raises(ValueError, match=says):
        next(train_windows(state, parts, held_out, SETTINGS, seed=7))
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), before, strict=True))
    rows = list(train_windows(state, parts, held_out, replace(SETTINGS, alpha=1.0, epochs=1), seed=7))
    assert len(rows) == 3, "alpha 1 needs no labels"


def test_a_loss_that_needs_labels_is_not_measured_without_them() -> None:
    state = started()
    held_out = replace(ready(state.model, teacher_distributions(), slice(40, None)), labels=None)
    with pytest.raises(ValueError, match="needs the teacher's labels"):
        window_loss(state.model, held_out, 0.3)


def test_data_in_parts_is_the_same_as_data_in_one() -> None:
    whole, parted, p = started(), started(), teacher_distributions()
    in_one = train(whole)
    parts = [ready(parted.model, p, rows) for rows in (slice(0, 7), slice(7, 7), slice(7, 40))]
    in_parts = list(train_windows(parted, parts, ready(parted.model, p, slice(40, None)), SETTINGS, seed=7))
    for a, b in zip(in_one, in_parts, strict=True):
        assert a.values == pytest.approx(b.values, abs=1e-12)


@pytest.mark.usefixtures("exact_attention")
def test_all_of_a_model_can_be_trained_on_windows_that_come_as_tokens() -> None:
    model, plain, p = tiny_gpt_neo(layers=2), tiny_gpt_neo(layers=2), teacher_distributions()
    set_trainable(model, "all")
    log_p, ids = p.log().topk(V, dim=1)
    data = [
        Windows(Tokens(CONTEXTS[rows], 1), next_tokens(rows)[:, None], TopKLabels(ids[rows].int(), log_p[rows]))
        for rows in (slice(0, 40), slice(40, None))
    ]
    settings = replace(SETTINGS, epochs=1)
    rows = list(train_windows(TrainState.start(model, settings.optimizer), data[:1], data[1], settings, seed=7))
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for number, index in enumerate(torch.from_numpy(np.random.default_rng([7, 0]).permutation(40)).split(16)):
        log_q = F.log_softmax(plain(CONTEXTS[index]).logits[:, -1], 1)
        nll = -log_q.gather(1, next_tokens(slice(0, 40))[index, None]).squeeze(1)
        loss = (0.3 * nll - 0.7 * (p[index] * log_q).sum(1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert rows[number].values["loss"] == pytest.approx(loss.item(), abs=1e-11)


@pytest.mark.parametrize("trainable", ["last_block", "all"])
def test_a_head_that_is_laid_out_changes_losses_by_rounding_alone_and_none_where_it_is_trained(
    trainable: Trainable,
) -> None:
    losses = []
    for lay_out_head in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            types = [[["global"], 2]]
            config = GPTNeoConfig(vocab_size=2048, hidden_size=32, num_layers=2, num_heads=4, attention_types=types)
            model = GPTNeoForCausalLM(config).eval()
        head = head_of(model)
        assert laid_out(head).product is not None, "the weights are too few to be laid out, and nothing is tested"
        set_trainable(model, trainable)
        windows = Windows(Tokens(CONTEXTS, 1), next_tokens(slice(None))[:, None], None)
        settings = replace(SETTINGS, alpha=1.0)
        state = TrainState.start(model, settings.optimizer)
        rows = train_windows(state, [windows], windows, settings, seed=7, lay_out_head=lay_out_head)
        losses.append([row.values["loss"] for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if trainable == "last_block" else 0)


def test_windows_that_come_as_tokens_are_read_in_the_precision_that_was_asked_for() -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        model = tiny_gpt_neo(layers=3).float()
        set_trainable(model, "last_block")
        windows = Windows(Tokens(CONTEXTS, 1, precision), next_tokens(slice(None))[:, None], None)  # type: ignore[arg-type]
        settings = replace(SETTINGS, alpha=1.0)
        rows = train_windows(TrainState.start(model, settings.optimizer), [windows], windows, settings, seed=7)
        losses[precision] = [row.values["loss"] for row in rows]
    apart = np.abs(np.subtract(losses["float32"], losses["bfloat16"]))
    assert 1e-6 < apart.max() < 0.02


@pytest.mark.usefixtures("exact_attention")
def test_packed_windows_are_one_pass_with_the_loss_past_the_context() -> None:
    model, predictions = tiny_gpt_neo(layers=2, window=4), 5
    targets = window_targets(len(TEXT), H, stride=predictions, predictions=predictions)
    rows, true = contexts(TEXT, targets, H, predictions), followers(TEXT, targets, predictions)
    windows = Windows(trunk(model, rows, predictions), true, None)
    with torch.no_grad():
        logits = model(rows).logits[:, H - 1 :]
        stock = F.cross_entropy(logits.flatten(0, 1), true.flatten())
    assert window_loss(model, windows, 1.0, batch_rows=3)["nll"] == pytest.approx(float(stock), abs=1e-11)


def test_packed_windows_as_long_as_what_a_round_adds_are_learnt_beside_it() -> None:
    # a horizon of P tokens gives windows of H + P - 1 tokens too, but one prediction fewer: the first would be all true
    state, predictions = started(), 5
    targets = window_targets(len(TEXT), H, stride=predictions, predictions=predictions)
    rows, true = contexts(TEXT, targets, H, predictions), followers(TEXT, targets, predictions)
    exact = Windows(trunk(state.model, rows, predictions), true, None)
    added = Windows(trunk(state.model, rows, predictions - 1), true[:, 1:], None)
    settings = replace(SETTINGS, alpha=1.0, epochs=1, batch_rows=len(exact) + len(added))
    with torch.no_grad():
        nll = F.cross_entropy(state.model(rows).logits[:, H - 1 :].flatten(0, 1), true.flatten(), reduction="none")
    by_prediction = nll.unflatten(0, true.shape)
    expected = torch.cat([by_prediction.flatten(), by_prediction[:, 1:].flatten()]).mean()
    (row,) = train_windows(state, [exact, added], exact, settings, seed=7)
    assert row.values["loss"] == pytest.approx(float(expected), abs=1e-6)
