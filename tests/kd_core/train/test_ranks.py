"""Several processes train together as one does: every loop, its losses, rollouts, weights and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_core.losses.rewards import RewardSettings
from kd_core.losses.soft_targets import TopKLabels
from kd_core.rollout.sampling import SamplingSettings
from kd_core.rollout.teacher_labels import OutputLabels
from kd_core.train.batches import BatchSettings
from kd_core.train.divergence import GKDSettings, JSSettings, ReverseKLSettings, Transfer, train_divergence
from kd_core.train.in_flight import blank, dealt, whole
from kd_core.train.language_model import PretrainSettings, train_language_model
from kd_core.train.llmr import Experience, train_llmr
from kd_core.train.minillm import MiniLLMSettings, train_minillm
from kd_core.train.ranks import Mine, Ranks
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState
from kd_core.train.supervised import Pairs, SupervisedSettings, train_supervised
from kd_core.windows.cutting import contexts, followers, window_targets
from kd_core.windows.last_block import set_trainable, trunk
from kd_core.windows.train import Windows, WindowTrainingSettings, train_windows
from tests.kd_core.conftest import tiny_t5
from tests.kd_core.together import together
from tests.kd_core.train.test_loops import PAIRS, SOURCES, rl
from tests.kd_core.windows.test_gpt_neo import V, tiny_gpt_neo

if TYPE_CHECKING:
    from pathlib import Path

LONG, SHORT = 50, 12  # updates
BATCH = BatchSettings(micro_batch_rows=5, micro_batches=2)  # of 40 rows: of three ranks, one has 1 row, two have 2


def adam(steps: int) -> OptimizerSettings:
    """For many updates in float32 a lower rate: at a high one any two orders of a sum drift apart."""
    return OptimizerSettings(learning_rate=1e-4 if steps == LONG else 1e-3)


def common(steps: int) -> dict[str, Any]:
    sampling = SamplingSettings(max_new_tokens=6)
    return {"steps": steps, "validate_every": 5, "sampling": sampling, "batch": BATCH, "optimizer": adam(steps)}


TEXT = torch.randint(0, V, (150,), generator=torch.Generator().manual_seed(3))


@dataclass
class Trained:
    """What a rank has seen and made."""

    log: list[StepMetrics]
    weights: dict[str, torch.Tensor]
    rollouts: list[list[tuple[int, list[int]]]] = field(default_factory=list)  # of each update: source and tokens


def labelled() -> Pairs:
    count = int(PAIRS.target.lengths.sum())
    log_p = torch.randn(count, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64).log_softmax(1)
    ids = torch.arange(11, dtype=torch.int32).expand(count, -1)
    return Pairs(PAIRS.source, PAIRS.target, OutputLabels(TopKLabels(ids, log_p), PAIRS.target.offset_R1))


def windows(model: Any, rows: slice, predictions: int = 1) -> Windows:
    target_M = window_targets(len(TEXT), 6, predictions=predictions)[rows]
    count = len(target_M) * predictions
    log_p = torch.randn(count, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = TopKLabels(torch.arange(V, dtype=torch.int32).expand(count, -1), log_p.log_softmax(1))
    below = trunk(model, contexts(TEXT, target_M, 6, predictions), predictions)
    return Windows(below, followers(TEXT, target_M, predictions), labels)


def student_of(kind: str, dtype: torch.dtype) -> Any:
    if kind in ("windows", "language model"):
        model = tiny_gpt_neo(layers=2).to(dtype)
        set_trainable(model, "last_block" if kind == "windows" else "all")
        return model
    return tiny_t5(seed=4).to(dtype)


def loop_of(kind: str, model: Any, dtype: torch.dtype, steps: int) -> Any:
    """The loop of a kind, of a state and a list for its rollouts."""
    rate = adam(steps)
    teacher = tiny_t5(seed=5).to(dtype)
    match kind:
        case "supervised":
            chosen = SupervisedSettings(epochs=15, max_steps=steps, validate_every=5, batch=BATCH, optimizer=rate)
            return lambda state, seen: train_supervised(state, PAIRS, PAIRS, chosen, 0)
        case "soft labels":
            soft = SupervisedSettings(epochs=15, max_steps=steps, alpha=0.3, batch=BATCH, optimizer=rate)
            return lambda state, seen: train_supervised(state, labelled(), PAIRS, soft, 0)
        case "reverse_kl" | "js" | "gkd":
            of_kind: Any = {"reverse_kl": ReverseKLSettings, "js": JSSettings, "gkd": GKDSettings}[kind]
            transfer = Transfer(SOURCES, PAIRS.target)
            return lambda state, seen: train_divergence(state, teacher, transfer, SOURCES, of_kind(**common(steps)), 0)
        case "minillm":
            mini = MiniLLMSettings(**common(steps), updates_per_rollout=2)
            return lambda state, seen: train_minillm(state, teacher, SOURCES, SOURCES, mini, 0)
        case "windows":
            cut = WindowTrainingSettings(alpha=0.3, epochs=-(-steps // 8), patience=0, batch_rows=8, optimizer=rate)
            train = [windows(model, slice(0, 40)), windows(model, slice(40, 60), 3)]
            return lambda state, seen: train_windows(state, train, windows(model, slice(60, None)), cut, 7)
        case "language model":
            pretrain = PretrainSettings(block=8, batch_rows=5, max_steps=steps, validate_every=5, optimizer=rate)
            return lambda state, seen: train_language_model(state, TEXT, TEXT, pretrain, 0)
    baseline: Any = kind if kind in ("leave_one_out", "batch_mean") else "value"
    held = kind == "leave_one_out"
    chosen_rl = rl(
        **common(steps),
        updates_per_rollout=3 if kind == "reused" else 1,
        rollouts_per_source=2 if held else 1,
        reverse_kl=0.5 if held else 0.0,
        start_kl=0.5 if held else 0.0,
        reward=RewardSettings(baseline=baseline, truncated="bootstrap", reward_scale=5.0),
    )
    start = tiny_t5(seed=4).to(dtype)
    return lambda state, seen: train_llmr(
        state, teacher, SOURCES, SOURCES, chosen_rl, 0, start=start if held else None, observe=seen
    )


@dataclass(frozen=True)
class Noting(Ranks):
    """Ranks that note which rows of each batch were theirs."""

    rows: list[tuple[int, list[int]]] = field(default_factory=list)  # and the place of the first

    def mine(self, rows_B: torch.Tensor, micro_batch: int = 0, tokens_B: torch.Tensor | None = None) -> Mine:
        """See `Ranks`."""
        found = super().mine(rows_B, micro_batch, tokens_B)
        self.rows.append((found.first, found.rows_B.tolist()))
        return found


LLMR = ("value", "reused", "leave_one_out", "batch_mean")
OF_STAGES = ("supervised", "js", "minillm", "windows", "language model", "value")  # one of every stage that trains
KINDS = ("supervised", "soft labels", "reverse_kl", "js", "gkd", "minillm", "windows", "language model", *LLMR)


def trained(kind: str, dtype: torch.dtype, steps: int) -> Trained:
    """A whole training by the ranks that are here."""
    model, seen = student_of(kind, dtype), dict[int, Experience]()
    state = TrainState.start(model, adam(steps), Ranks.here())
    found = Trained([], {})
    for row in loop_of(kind, model, dtype, steps)(state, seen):
        found.log.append(row)
        found.rollouts.append(
            [
                (int(source), tokens[mask].tolist())
                for part in seen.values()
                for source, tokens, mask in zip(part.source_B, part.tokens_BT, part.mask_BT, strict=True)
            ]
        )
    found.weights = {name: x.detach().clone() for name, x in model.named_parameters()}
    return found


alone = cache(trained)


def all_trained(kinds: tuple[str, ...], dtype: torch.dtype, steps: int) -> dict[str, Trained]:
    return {kind: trained(kind, dtype, steps) for kind in kinds}


@pytest.fixture(scope="module", params=[2, 3])
def exactly(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Trained]]:
    """All trainings, in float64, by each of several ranks."""
    return together(all_trained, request.param, tmp_path_factory.mktemp("ranks"), KINDS, torch.float64, SHORT)


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Trained]]:
    return together(all_trained, 2, tmp_path_factory.mktemp("ranks"), OF_STAGES, torch.float32, LONG)


def assert_same(found: Trained, expected: Trained, tolerance: float) -> None:
    assert [row.step for row in found.log] == [row.step for row in expected.log]
    for row, one in zip(found.log, expected.log, strict=True):
        assert row.values.keys() == one.values.keys()
        for name, value in one.values.items():
            assert row.values[name] == pytest.approx(value, abs=tolerance, rel=tolerance), (row.step, name)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_train_as_one_process_does(exactly: list[dict[str, Trained]], kind: str) -> None:
    """Losses, all else that is logged, and weights, in float64; the ranks agree to the last bit."""
    expected = alone(kind, torch.float64, SHORT)
    assert len(expected.log) >= SHORT
    for rank in exactly:
        assert_same(rank[kind], expected, 1e-7)
        for name, weight in expected.weights.items():
            torch.testing.assert_close(rank[kind].weights[name], weight, atol=1e-7, rtol=1e-7)
            assert torch.equal(rank[kind].weights[name], exactly[0][kind].weights[name]), name
    start = student_of(kind, torch.float64)
    assert any(not torch.equal(x, expected.weights[name]) for name, x in start.named_parameters()), "nothing was learnt"


@pytest.mark.parametrize("kind", OF_STAGES)
def test_losses_in_float32_are_those_of_one_process(in_float32: list[dict[str, Trained]], kind: str) -> None:
    expected = alone(kind, torch.float32, LONG)
    losses = [row.values["loss"] for row in expected.log if "loss" in row.values]
    assert len(losses) >= LONG
    for rank in in_float32:
        found = [row.values["loss"] for row in rank[kind].log if "loss" in row.values]
        assert found == pytest.approx(losses, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("kind", LLMR)
def test_rollouts_are_those_of_one_process_token_by_token(exactly: list[dict[str, Trained]], kind: str) -> None:
    expected = alone(kind, torch.float64, SHORT)
    for step, rollouts in enumerate(expected.rollouts):
        found = [rollout for rank in exactly for rollout in rank[kind].rollouts[step]]
        assert sorted(found) == sorted(rollouts)
    assert len(expected.rollouts[-1]) >= 10


def stopped(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """LLMR until rollouts are in flight, saved by the first rank; what this rank has of them."""
    model, ranks = student_of("reused", torch.float32), Ranks.here()
    state, log = TrainState.start(model, adam(SHORT), ranks), list[StepMetrics]()
    for row in loop_of("reused", model, torch.float32, SHORT)(state, {}):
        log.append(row)
        if row.step == step:
            break
    tensors = state.tensors()
    assert any(name.startswith("in_flight.") for name in tensors)
    if ranks.is_first:
        state.save(folder, log, tensors)
    ranks.barrier()
    return state.in_flight


def taken_again(folder: Path) -> dict[str, torch.Tensor]:
    """What this rank has in flight when it has gone on by an update, which uses it once more."""
    model = student_of("reused", torch.float32)
    state = TrainState.start(model, adam(SHORT), Ranks.here())
    state.load(folder)
    next(loop_of("reused", model, torch.float32, SHORT)(state, {}))
    return state.in_flight


def there_and_back(
    rows: list[int], tokens_R: torch.Tensor, in_step: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two rollouts of each of some sources a micro-batch, as long as their rank: a rank's, everybody's, the rank's."""
    ranks, own = replace(Ranks.here(), in_step=in_step), {}
    for micro in range(3):
        mine = ranks.mine(torch.tensor(rows), micro, tokens_R[rows])
        source_B = mine.rows_B.repeat_interleave(2)
        tokens_BT = 10 * micro + source_B[:, None].expand(-1, ranks.rank + 1)
        if len(source_B):
            part = {"source_B": source_B, "tokens_BT": tokens_BT.clone()}
            part["mask_BT"] = torch.ones_like(tokens_BT, dtype=torch.bool)
            own |= {f"{micro}.{name}": x for name, x in (part if mine.counts else blank(part)).items()}
    everybodys = whole(own, ranks)
    return own, everybodys, dealt(everybodys, ranks, tokens_R)


def resumed(folder: Path) -> Trained:
    model = student_of("reused", torch.float32)
    state = TrainState.start(model, adam(SHORT), Ranks.here())
    log = state.load(folder)
    log += loop_of("reused", model, torch.float32, SHORT)(state, {})
    return Trained(log, {name: x.detach().clone() for name, x in model.named_parameters()})


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2)])
def test_a_training_goes_on_with_another_number_of_ranks(tmp_path: Path, before: int, after: int) -> None:
    """Rollouts in flight are all in the checkpoint, and are dealt out again."""
    for name in ("first", "second", "checkpoint"):
        (tmp_path / name).mkdir()
    folder = tmp_path / "checkpoint"
    together(stopped, before, tmp_path / "first", folder, 4)
    expected = alone("reused", torch.float32, SHORT)
    for rank in together(resumed, after, tmp_path / "second", folder):
        assert_same(rank, expected, 2e-4)
        for name, weight in expected.weights.items():
            torch.testing.assert_close(rank.weights[name], weight, atol=1e-5, rtol=1e-5)


def test_a_training_that_as_many_ranks_go_on_with_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """In float32: of its rollouts each rank has those again that it had before."""
    for name in ("first", "second", "checkpoint", "unbroken"):
        (tmp_path / name).mkdir()
    before = together(stopped, 3, tmp_path / "first", tmp_path / "checkpoint", 4)
    (tmp_path / "again").mkdir()
    for had, has in zip(before, together(taken_again, 3, tmp_path / "again", tmp_path / "checkpoint"), strict=True):
        assert had.keys() == has.keys()
        assert all(torch.equal(had[name], has[name]) for name in had)
    found = together(resumed, 3, tmp_path / "second", tmp_path / "checkpoint")
    unbroken = together(trained, 3, tmp_path / "unbroken", "reused", torch.float32, SHORT)
    for rank, expected in zip(found, unbroken, strict=True):
        assert rank.log == expected.log
        for name, weight in expected.weights.items():
            assert torch.equal(rank.weights[name], weight), name


@pytest.mark.parametrize(("rows", "tensors"), [([9, 7], {6}), ([9, 7, 1, 2, 3], {9})])
def test_rollouts_in_flight_are_joined_as_one_process_has_them_and_each_rank_has_its_own_again(
    tmp_path: Path, rows: list[int], tensors: set[int]
) -> None:
    """Of three ranks and two rows one has none in each micro-batch, another one each time."""
    found = together(there_and_back, 3, tmp_path, rows, torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 1, 4]))
    for own, everybodys, again in found:
        assert own.keys() == again.keys()
        assert all(torch.equal(own[name], again[name]) for name in own)
        assert [everybodys[f"{micro}.source_B"].tolist() for micro in range(3)] == [
            [row for row in rows for _ in range(2)]
        ] * 3
        assert all(everybodys[f"{micro}.mask_BT"].shape == everybodys[f"{micro}.tokens_BT"].shape for micro in range(3))
    assert {len(own) for own, _, _ in found} == tensors
    if len(rows) == 5:  # row 9 costs as much as the others together: 1, 3 and 1 rows, in whatever place a rank is
        assert {own["0.source_B"].unique().numel() for own, _, _ in found} == {1, 3}


def test_in_flight_a_rank_that_only_keeps_step_has_a_row_that_does_not_count(tmp_path: Path) -> None:
    """Which is in no checkpoint; afterwards it has one again."""
    found = together(there_and_back, 3, tmp_path, [9, 7], torch.ones(10, dtype=torch.long), True)
    for own, everybodys, again in found:
        assert own.keys() == again.keys()
        for micro in range(3):
            assert everybodys[f"{micro}.source_B"].tolist() == [9, 9, 7, 7]
            assert everybodys[f"{micro}.mask_BT"].any(dim=1).all()
            names = [f"{micro}.{name}" for name in ("source_B", "mask_BT", "tokens_BT")]
            if own[names[1]].any():
                assert all(torch.equal(own[name], again[name]) for name in names)
            else:
                assert own[names[0]].tolist() == again[names[0]].tolist() == [9, 9]
                assert not again[names[1]].any()
                assert not again[names[2]].any()
    assert [sum(not own[f"{micro}.mask_BT"].any() for own, _, _ in found) for micro in range(3)] == [1, 1, 1]


def test_alone_nothing_is_asked_of_anybody() -> None:
    ranks, rows = Ranks.here(), torch.arange(7)
    assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
    assert ranks.mine(rows).rows_B.tolist() == rows.tolist()
    assert ranks.gather(3) == [3]
    assert ranks.map(lambda x: 2 * x, [1, 2]) == [2, 4]


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batch", [0, 1, 9])
def test_every_row_of_a_batch_is_one_ranks(rows: int, size: int, micro_batch: int) -> None:
    order = Ranks(0, size).in_order(micro_batch)
    parts = [Ranks(rank, size).mine(torch.arange(rows), micro_batch) for rank in order]
    assert [row for part in parts for row in part.rows_B.tolist()] == list(range(rows))
    assert [part.first for part in parts if len(part)] == [int(part.rows_B[0]) for part in parts if len(part)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_short_micro_batches_go_round() -> None:
    """Of four micro-batches of two rows, eight ranks have one row each."""
    counts = [sum(len(Ranks(rank, 8).mine(torch.arange(2), micro)) for micro in range(4)) for rank in range(8)]
    assert counts == [1] * 8


@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=9), size=st.integers(1, 9))
@settings(deadline=None)
def test_the_rank_with_most_tokens_has_as_few_as_neighbours_allow(costs: list[int], size: int) -> None:
    """Of all ways to cut a batch into as many parts, none empty, the dearest part of ours is the cheapest."""
    tokens_B, rows = torch.tensor(costs), torch.arange(len(costs))
    parts = [Ranks(rank, size).mine(rows, 0, tokens_B).rows_B for rank in range(size)]
    assert torch.cat(parts).tolist() == rows.tolist()
    assert min(map(len, parts)) >= min(1, len(costs) // size)
    filled = min(size, len(costs))
    cuts = [(0, *inner, len(costs)) for inner in combinations(range(1, len(costs)), filled - 1)]
    dearest = [max(sum(costs[first:end]) for first, end in pairwise(cut)) for cut in cuts]
    assert max(int(tokens_B[part].sum()) for part in parts) == min(dearest)


def rows_of(kinds: tuple[str, ...]) -> dict[str, list[tuple[int, list[int]]]]:
    """Of a short training of each kind, this rank's rows of every micro-batch."""
    found = {}
    for kind in kinds:
        model, ranks = student_of(kind, torch.float32), Noting(Ranks.here().rank, Ranks.here().size)
        for row in loop_of(kind, model, torch.float32, 5)(TrainState.start(model, adam(5), ranks), {}):
            if row.step == 5:
                break
        found[kind] = ranks.rows
    return found


def test_every_loop_shares_rows_out_by_what_they_cost(tmp_path: Path) -> None:
    """What is read and written by one model or both, up to the limit of 6 where that is not known before."""
    source, text = PAIRS.source.lengths, PAIRS.target.lengths
    both = SOURCES.student.lengths + SOURCES.teacher.lengths
    costs = {"supervised": source + text, "value": both + 12, "leave_one_out": both + 24, "minillm": both + 12}
    costs |= {"js": both + 2 * text.clamp(max=6) + 12, "windows": torch.tensor([1] * 40 + [3] * 20)}
    of_rank = together(rows_of, 2, tmp_path, tuple(costs))
    for kind, cost in costs.items():
        by_number = []
        for parts in zip(*(rank[kind] for rank in of_rank), strict=True):
            first, second = (cost[rows].sum() for _, rows in sorted(parts))
            batch = cost[[row for _, rows in sorted(parts) for row in rows]]
            dearest = [max(batch[:end].sum(), batch[end:].sum()) for end in range(1, len(batch))]
            assert max(first, second) == min(dearest), kind
            by_number.append(int(dearest[len(batch) // 2 - 1] - min(dearest)))
        assert max(by_number) > 0, f"{kind}: by number they are as even"
