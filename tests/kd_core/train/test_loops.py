"""The loops: what a step computes, and that a stopped and resumed training is the training that was never stopped."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_core.losses.rewards import RewardSettings
from kd_core.losses.soft_targets import TopKLabels
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import SamplingSettings, mixed_seed
from kd_core.rollout.teacher_labels import OutputLabels
from kd_core.train.batches import BatchSettings, Sources
from kd_core.train.in_flight import pack, unpack
from kd_core.train.llmr import LLMRSettings, train_llmr
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState
from kd_core.train.supervised import (
    Pairs,
    SupervisedSettings,
    batch_loss,
    cross_entropy,
    num_updates,
    train_supervised,
)

Make = Callable[..., Any]


def ragged(rows: int, seed: int, longest: int = 6) -> TokenRows:
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (rows,), generator=rng).tolist()
    return TokenRows.of([[*torch.randint(2, 11, (n,), generator=rng).tolist(), 1] for n in lengths])


PAIRS = Pairs(ragged(40, 1), ragged(40, 2))
SOURCES = Sources(ragged(40, 1), ragged(40, 3))


def supervised(**more: Any) -> SupervisedSettings:
    return SupervisedSettings(
        epochs=3,
        validate_every=4,
        batch=BatchSettings(micro_batch_rows=5, micro_batches=2),
        optimizer=OptimizerSettings(learning_rate=1e-3, schedule="linear", warmup_steps=2),
        **more,
    )


def rl(**more: Any) -> LLMRSettings:
    given = {
        "steps": 9,
        "validate_every": 4,
        "sampling": SamplingSettings(max_new_tokens=6),
        "reward": RewardSettings(baseline="value", truncated="bootstrap", reward_scale=5.0),
        "batch": BatchSettings(micro_batch_rows=5, micro_batches=2),
        "optimizer": OptimizerSettings(learning_rate=1e-3),
    }
    return LLMRSettings(**(given | more))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_micro_batches_equal_one_batch(make_t5: Make) -> None:
    """One update over 2 x 10 rows is the update over 20: averaged over all tokens, not per micro-batch."""
    results = []
    for rows, micro in ((20, 1), (5, 4)):
        model = make_t5()
        chosen = SupervisedSettings(
            max_steps=1,
            batch=BatchSettings(micro_batch_rows=rows, micro_batches=micro),
            optimizer=OptimizerSettings(learning_rate=1e-2),
        )
        twenty = Pairs(ragged(20, 1), ragged(20, 2))
        state = TrainState.start(model, chosen.optimizer)
        (row,) = list(train_supervised(state, twenty, twenty, chosen, 0))
        results.append((row.values["loss"], row.values["tokens"], weights(model)))
    (loss, tokens, one), (split_loss, split_tokens, split) = results
    assert tokens == split_tokens == float(ragged(20, 2).lengths.sum())
    assert loss == pytest.approx(split_loss, rel=1e-6)
    for name in one:
        torch.testing.assert_close(one[name], split[name], atol=1e-6, rtol=1e-6)


def test_loss_is_the_stock_models_cross_entropy(make_t5: Make) -> None:
    model, rows = make_t5(), torch.arange(40)
    source, source_mask = PAIRS.source.batch(rows, 0)
    target, mask = PAIRS.target.batch(rows, 0)
    labels = target.masked_fill(~mask, -100)
    with torch.no_grad():
        stock = model(input_ids=source, attention_mask=source_mask.long(), labels=labels, use_cache=False).loss
    assert cross_entropy(model, PAIRS, 40) == pytest.approx(float(stock), rel=1e-5)


def test_seqkd_learns(make_t5: Make) -> None:
    state = TrainState.start(make_t5(), OptimizerSettings())
    chosen = supervised()
    chosen = SupervisedSettings(**(vars(chosen) | {"epochs": 30, "optimizer": OptimizerSettings(learning_rate=1e-2)}))
    log = list(train_supervised(state, PAIRS, PAIRS, chosen, 0))
    assert log[-1].values["loss"] < 0.5 * log[0].values["loss"]
    assert len(log) == num_updates(PAIRS, chosen, 0)


def run(
    loop: Callable[[TrainState], Iterator[StepMetrics]], state: TrainState, stop: int | None = None
) -> list[StepMetrics]:
    log = []
    for row in loop(state):
        log.append(row)
        if row.step == stop:
            break
    return log


@pytest.mark.parametrize("stop", [1, 5])
@pytest.mark.parametrize(
    "kind",
    [
        "supervised",
        "dropout",
        "llmr",
        "llmr with rollouts in flight",
        "leave_one_out",
        "batch_mean",
        "one batch",
        "keep",
        "held",
    ],
)
def test_resumed_training_is_byte_identical(make_t5: Make, tmp_path: Path, kind: str, stop: int) -> None:
    def model() -> Any:
        student = make_t5(seed=4)
        if kind == "dropout":
            for module in student.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.3
        return student

    if kind in ("supervised", "dropout"):
        optimizer, teacher = supervised().optimizer, None

        def loop(state: TrainState) -> Iterator[StepMetrics]:
            return train_supervised(state, PAIRS, PAIRS, supervised(), 0)
    else:
        baseline: Any = kind if kind in ("leave_one_out", "batch_mean") else "value"
        chosen = rl(
            updates_per_rollout=3 if "flight" in kind else 1,
            rollouts_per_source=2 if kind in ("leave_one_out", "held") else 1,
            keep="reverse_kl" if kind == "keep" else "last",
            start_kl=0.5 if kind == "held" else 0.0,
            reverse_kl=0.5 if kind == "held" else 0.0,
            reward=RewardSettings(baseline=baseline, truncated="bootstrap", reward_scale=5.0),
            batch=BatchSettings(micro_batch_rows=5, micro_batches=1 if kind == "one batch" else 2),
        )
        optimizer, teacher = chosen.optimizer, make_t5(seed=5)

        def loop(state: TrainState) -> Iterator[StepMetrics]:
            return train_llmr(state, teacher, SOURCES, SOURCES, chosen, 0, start=make_t5(seed=4))

    whole = TrainState.start(model(), optimizer)
    whole_log = run(loop, whole)

    first = TrainState.start(model(), optimizer)
    first_log = run(loop, first, stop)
    first.save(tmp_path, first_log)
    if "flight" in kind:
        assert first.in_flight, "no rollouts in flight: the case was not tested"
    second = TrainState.start(model(), optimizer)
    log = second.load(tmp_path)
    assert log == first_log
    log += run(loop, second)
    assert log == whole_log
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(second.model)[name]), name


def test_rollouts_in_flight_are_named_by_number_and_field_and_come_back_in_order() -> None:
    parts = [Pairs(torch.tensor([i]), torch.tensor([-i])) for i in range(11)]  # type: ignore[arg-type]
    packed = pack(dict(enumerate(parts)))
    assert packed["10.source"].item() == 10  # names of a checkpoint: one that was saved before must be read
    assert len(packed) == 22
    found = unpack(Pairs, dict(sorted(packed.items(), reverse=True)))  # as strings, 10 comes before 2
    assert [(part.source.item(), part.target.item()) for part in found.values()] == [(i, -i) for i in range(11)]  # type: ignore[attr-defined]


def test_rollouts_are_reused_and_weighted(make_t5: Make) -> None:
    chosen = rl(updates_per_rollout=3)
    state = TrainState.start(make_t5(seed=4), chosen.optimizer)
    log = run(lambda s: train_llmr(s, make_t5(seed=5), SOURCES, SOURCES, chosen, 0), state)[1:]
    assert [row.values["staleness"] for row in log[:6]] == [0, 1, 2, 0, 1, 2]
    assert log[0].values["reward"] == log[1].values["reward"] != log[3].values["reward"]
    assert log[0].values["max_ratio"] == 1.0
    assert log[1].values["max_ratio"] != 1.0


def test_llmr_raises_the_teachers_reward(make_t5: Make) -> None:
    chosen = rl(steps=60, optimizer=OptimizerSettings(learning_rate=1e-2), batch=BatchSettings(micro_batch_rows=40))
    state = TrainState.start(make_t5(seed=4), chosen.optimizer)
    log = run(lambda s: train_llmr(s, make_t5(seed=5), SOURCES, SOURCES, chosen, 0), state)
    gains = [row.values["gain"] for row in log[1:]]
    assert sum(gains[-10:]) / 10 > sum(gains[:10]) / 10 + 1.0


def test_an_update_with_every_rollout_cut_off_changes_nothing_and_says_so(make_t5: Make) -> None:
    student = make_t5(seed=4)
    student.config.eos_token_id = 10  # beyond the 10 tokens that may be written: no output ends
    chosen = rl(steps=1, reward=RewardSettings(truncated="drop"))
    state = TrainState.start(student, chosen.optimizer)
    before = weights(student)
    _, row = run(lambda s: train_llmr(s, make_t5(seed=5), SOURCES, SOURCES, chosen, 0, num_tokens=10), state)
    assert row.values["truncated"] == 1.0
    assert row.values["tokens"] == 0.0
    assert all(torch.equal(before[name], value) for name, value in weights(student).items())


def test_learning_rate_schedule() -> None:
    # up in 3 equal steps, the third of which is the first at the full rate; down in 4 equal steps, the last to 0
    linear = OptimizerSettings(learning_rate=1.0, schedule="linear", warmup_steps=2)
    rates = [linear.rate_at(step, 7) for step in range(1, 8)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates[-1] == 0.0
    assert [linear.rate_at(step, 3) for step in range(1, 4)][-1] == 1.0, "one update after the warm-up learns"
    assert OptimizerSettings(learning_rate=0.5).rate_at(1000, 6) == 0.5


@pytest.mark.parametrize("num_steps", [2, 10, 600])
@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_a_linear_schedule_ends_at_0_at_the_last_step(num_steps: int, warmup_steps: int) -> None:
    linear = OptimizerSettings(learning_rate=0.5, schedule="linear", warmup_steps=warmup_steps)
    rates = [linear.rate_at(step, num_steps) for step in range(warmup_steps + 1, num_steps + 1)]
    assert rates[0] == 0.5
    if len(rates) > 1:
        assert rates[-1] == 0.0
        falls = [a - b for a, b in pairwise(rates)]
        assert falls == pytest.approx([0.5 / (len(rates) - 1)] * len(falls))


def test_mixed_seeds_differ() -> None:
    assert len({mixed_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}) == 1000


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        (OptimizerSettings, "learning_rate", 0.0),
        (OptimizerSettings, "schedule", "cosine"),
        (OptimizerSettings, "max_grad_norm", -1.0),
        (SupervisedSettings, "epochs", 0),
        (SupervisedSettings, "max_steps", 0),
        (LLMRSettings, "steps", 0),
        (LLMRSettings, "importance", "sometimes"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*, got {value!r}"):
        settings(**{field: value})


def test_leave_one_out_needs_two_rollouts() -> None:
    with pytest.raises(ValueError, match="rollouts_per_source of at least 2"):
        LLMRSettings(reward=RewardSettings(baseline="leave_one_out"))


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_soft_labels_are_weighed_over_all_tokens_of_an_update(make_t5: Make, alpha: float) -> None:
    """alpha * NLL + (1 - alpha) * KD of two micro-batches of unequal length, against the stock model's full logits."""
    teacher, model, rows = make_t5(seed=5), make_t5(seed=4), torch.arange(10)
    target, mask = PAIRS.target.batch(rows, 0)
    source, source_mask = PAIRS.source.batch(rows, 0)

    def log_probs(of: Any) -> torch.Tensor:
        inputs = torch.cat([torch.zeros(10, 1, dtype=torch.long), target[:, :-1]], 1)
        out = of(input_ids=source, attention_mask=source_mask.long(), decoder_input_ids=inputs, use_cache=False)
        return out.logits.double().log_softmax(-1)[mask]  # type: ignore[no-any-return]

    with torch.no_grad():
        p = log_probs(teacher).exp()
        best, ids = p.topk(11, dim=1)
    labels = OutputLabels(TopKLabels(ids, best.log()), PAIRS.target.offset_R1[:10])
    train = Pairs(PAIRS.source, PAIRS.target, labels)
    count = int(mask.sum())
    parts = [batch_loss(model, train, part, alpha, count, None) for part in rows.split(7)]
    total = torch.stack([each["loss"] for each in parts]).sum()
    total.backward()
    ours = [x.grad.clone() for x in model.parameters()]
    model.zero_grad()
    log_q = log_probs(model)
    nll, kd = -log_q.gather(1, target[mask][:, None]).mean(), -(p * log_q).sum(1).mean()
    plain = alpha * nll + (1 - alpha) * kd
    plain.backward()
    assert total.item() == pytest.approx(plain.item(), rel=1e-5)
    assert float(sum(each["nll"] for each in parts)) == pytest.approx(nll.item(), rel=1e-5)
    assert float(sum(each["kd"] for each in parts)) == pytest.approx(kd.item(), rel=1e-5)
    for a, b in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, atol=1e-5, rtol=1e-4)
