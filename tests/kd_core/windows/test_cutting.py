import pytest
import torch

from kd_core.windows.cutting import contexts, trajectory_starts, window_targets

H, T = 7, 4
TEXT = torch.randint(0, 23, (40,), generator=torch.Generator().manual_seed(3))


def test_every_token_with_a_whole_context_is_predicted_once() -> None:
    targets = window_targets(len(TEXT), H)
    assert targets.tolist() == list(range(H, 40))
    for target, context in zip(targets, contexts(TEXT, targets, H), strict=True):
        assert context.tolist() == TEXT[target - H : target].tolist()


def test_trajectories_fit_into_the_text() -> None:
    assert trajectory_starts(40, H, T, H + T).tolist() == [0, 11, 22]  # Algorithm 1: pieces side by side
    every = trajectory_starts(40, H, T, T)
    predicted = [start + H + step for start in every.tolist() for step in range(T)]
    assert predicted == list(range(H, H + T * len(every)))  # every token once, but for a rest shorter than T
    assert 40 - predicted[-1] - 1 < T


def test_texts_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="a text of 7 tokens has no window of 7 tokens and one to predict"):
        window_targets(7, 7)
    with pytest.raises(ValueError, match="a text of 10 tokens is shorter than one trajectory: context 7 \\+ horizon 4"):
        trajectory_starts(10, 7, 4, 4)
