"""Algorithm 1, whole: rounds of training and aggregation against a literal version that knows only stock models."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import MistralConfig, MistralForCausalLM

from kd_core.losses.soft_targets import HiddenLabels
from kd_core.models.policy import head_of
from kd_core.train.state import OptimizerSettings, TrainState
from kd_core.windows.cutting import contexts, followers, trajectory_starts, window_targets
from kd_core.windows.dad_dagger import Aggregated, aggregate
from kd_core.windows.last_block import last_hidden, next_hidden, set_trainable, trunk
from kd_core.windows.train import Windows, WindowTrainingSettings, train_windows
from kd_core.windows.trunk import Trunk
from tests.kd_core.windows.test_gpt_neo import V, exact_attention, tiny_gpt_neo

__all__ = ["exact_attention"]

H, T, ROUNDS, SEED = 6, 4, 3, 11
TEXT = torch.randint(0, V, (46,), generator=torch.Generator().manual_seed(3))
HELD_OUT = torch.randint(0, V, (20,), generator=torch.Generator().manual_seed(4))
SETTINGS = WindowTrainingSettings(
    alpha=0.3, epochs=2, patience=0, batch_rows=16, optimizer=OptimizerSettings(learning_rate=3e-3)
)
Triplets = tuple[list[list[int]], list[int]]  # contexts and true tokens; the teacher's answer is a function of these


def tiny_mistral(*, layers: int, seed: int) -> Any:
    """Rotary positions, grouped keys and a window that is shorter than the context; random in every weight."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = MistralConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            sliding_window=4,
            max_position_embeddings=32,
        )
        model = MistralForCausalLM(config).double().eval()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def literal(student: Any, teacher: Any) -> tuple[Triplets, list[float]]:
    """Algorithm 1 as it reads, one window at a time; returns D_T at the end and every loss."""
    text = TEXT.tolist()
    seen, true = [text[t - H : t] for t in range(H, len(text))], text[H:]
    optimizer = torch.optim.Adam(set_trainable(student, "last_block"), lr=3e-3)
    losses = []
    for iteration in range(ROUNDS):
        optimizer.state.clear()
        for epoch in range(2):
            order = np.random.default_rng([SEED + iteration, epoch]).permutation(len(seen))
            for index in np.array_split(order, range(16, len(order), 16)):
                total = torch.zeros((), dtype=torch.float64)
                for i in index:
                    log_q = F.log_softmax(student(torch.tensor([seen[i]])).logits[0, -1], 0)
                    with torch.no_grad():
                        p = teacher(torch.tensor([seen[i]])).logits[0, -1].softmax(0)
                    total = total - 0.3 * log_q[true[i]] - 0.7 * (p * log_q).sum()
                loss = total / len(index)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        starts = range(0, len(text) - H - T + 1, H + T)
        uniform = torch.rand((len(starts), T), generator=torch.Generator().manual_seed(SEED + iteration))
        for row, start in enumerate(starts):
            window = text[start : start + H]
            for step in range(T):
                if step:
                    seen.append(window[-H:])
                    true.append(text[start + H + step])
                with torch.no_grad():
                    q = student(torch.tensor([window[-H:]])).logits[0, -1].softmax(0)
                window.append(int((q.cumsum(0) <= uniform[row, step]).sum()))
    return (seen, true), losses


def ready(student: Any, teacher: Any, seen: torch.Tensor, true: torch.Tensor, below: Trunk | None = None) -> Windows:
    with torch.no_grad():
        labels = HiddenLabels(next_hidden(teacher, seen, true.shape[1]), head_of(teacher))
    return Windows(below or trunk(student, seen, true.shape[1]), true, labels)


@pytest.mark.usefixtures("exact_attention")
@pytest.mark.parametrize("tiny", [tiny_gpt_neo, tiny_mistral])
def test_algorithm_1_gives_the_same_triplets_in_the_same_order_and_the_same_losses(tiny: Callable[..., Any]) -> None:
    teacher, student = tiny(layers=3, seed=5), tiny(layers=2, seed=6)
    (seen, true), losses = literal(tiny(layers=2, seed=6), teacher)

    set_trainable(student, "last_block")
    targets = window_targets(len(TEXT), H)
    data = [ready(student, teacher, contexts(TEXT, targets, H), followers(TEXT, targets, 1))]
    held_out = window_targets(len(HELD_OUT), H)
    validation = ready(student, teacher, contexts(HELD_OUT, held_out, H), followers(HELD_OUT, held_out, 1))
    windows, ours, best_is_last = [contexts(TEXT, targets, H)], [], []
    for iteration in range(ROUNDS):
        rows = list(
            train_windows(TrainState.start(student, SETTINGS.optimizer), data, validation, SETTINGS, SEED + iteration)
        )
        ours += [row.values["loss"] for row in rows]
        looks = [row.values["validation_loss"] for row in rows if "validation_loss" in row.values]
        best_is_last.append(looks[-1] == min(looks))
        for part in aggregate(
            student, TEXT, trajectory_starts(len(TEXT), H, T, H + T), H, T, SEED + iteration, batch_rows=3
        ):
            windows.append(part.context_ML)
            data.append(ready(student, teacher, part.context_ML, part.target_MP, part.below))
    assert all(best_is_last), "the best epoch was not the last: the literal version does not go back to it"
    assert torch.cat(windows).tolist() == seen
    assert torch.cat([part.target_MP for part in data]).flatten().tolist() == true
    assert ours == pytest.approx(losses, abs=1e-11)
    assert len(seen) == len(TEXT) - H + ROUNDS * 4 * (T - 1)


def one_batch(**named: Any) -> Aggregated:
    starts = trajectory_starts(len(TEXT), H, T, T)
    return next(aggregate(tiny_gpt_neo(), TEXT, starts, H, T, SEED, **named))


def test_every_aggregated_window_ends_in_a_token_of_the_students() -> None:
    found = one_batch()
    for row in range(len(found.target_MP)):
        start, step = int(found.trajectory_M[row]), int(found.step_MP[row])
        assert found.context_ML[row, : H - step].tolist() == TEXT[start + step : start + H].tolist()
        assert found.target_MP[row] == TEXT[start + H + step]
        assert found.left_MP[row] == (found.context_ML[row, -1] != TEXT[start + H + step - 1])
    assert found.left_MP.any()
    assert sorted(set(found.step_MP.flatten().tolist())) == [1, 2, 3]


def test_what_was_computed_on_the_way_is_what_training_needs() -> None:
    found = one_batch()
    below = trunk(tiny_gpt_neo(), found.context_ML)
    torch.testing.assert_close(found.below.behind_BXD, below.behind_BXD, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(found.below.last_BPD, below.last_BPD, atol=1e-12, rtol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_what_was_computed_on_the_way_has_the_precision_that_was_asked_for(packed: bool) -> None:
    student, starts = tiny_gpt_neo().float(), trajectory_starts(len(TEXT), H, T, T)
    found = next(aggregate(student, TEXT, starts, H, T, SEED, packed=packed, trunk_precision="bfloat16"))
    predictions, apart = found.target_MP.shape[1], []
    for precision in ("float32", "bfloat16"):
        below = trunk(student, found.context_ML, predictions, precision)  # type: ignore[arg-type]
        apart.append((found.below.behind_BXD - below.behind_BXD).abs().mean())
    assert apart[1] < apart[0] / 100


def test_a_trajectory_does_not_depend_on_its_batch() -> None:
    starts = trajectory_starts(len(TEXT), H, T, T)
    parts = aggregate(tiny_gpt_neo(), TEXT, starts, H, T, SEED, batch_rows=2)
    assert torch.cat([part.context_ML for part in parts]).tolist() == one_batch().context_ML.tolist()


def test_a_killed_aggregation_goes_on_where_it_was() -> None:
    starts, whole = trajectory_starts(len(TEXT), H, T, T), one_batch()
    rest = next(aggregate(tiny_gpt_neo(), TEXT, starts, H, T, SEED, batch_rows=3, batches=[1]))
    assert rest.context_ML.tolist() == whole.context_ML[3 * (T - 1) : 6 * (T - 1)].tolist()
    assert list(aggregate(tiny_gpt_neo(), TEXT, starts, H, T, SEED, batches=[])) == []


@pytest.mark.usefixtures("exact_attention")
def test_packed_a_trajectory_is_one_window_with_all_its_predictions() -> None:
    model, found = tiny_gpt_neo(), one_batch(packed=True)
    assert found.context_ML.shape[1] == H + T - 1
    hidden = last_hidden(model, found.below).unflatten(0, found.target_MP.shape)
    for row, start in enumerate(found.trajectory_M.tolist()):
        seen = found.context_ML[row]
        assert seen[:H].tolist() == TEXT[start : start + H].tolist()
        assert found.target_MP[row].tolist() == TEXT[start + H + 1 : start + H + T].tolist()
        assert found.left_MP[row].tolist() == (seen[H:] != TEXT[start + H : start + H + T - 1]).tolist()
        with torch.no_grad():
            stock = model(seen[None], output_hidden_states=True).hidden_states[-1][0, H:]
        torch.testing.assert_close(hidden[row], stock, atol=1e-11, rtol=1e-11)


def test_a_horizon_without_a_token_of_the_students_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon must be at least 2"):
        next(aggregate(tiny_gpt_neo(), TEXT, torch.tensor([0]), H, 1, SEED))
