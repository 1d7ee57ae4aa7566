"""The best weights of a training, by a score of its validations, and how long ago they were found.

They travel in `TrainState.best`, so that every checkpoint has them.
"""

import torch

from kd_core.train.state import TrainState


@torch.no_grad()
def remember(state: TrainState, score: float) -> bool:
    """Keep the weights if no score so far is as low, else count one more that was no better; returns which it was."""
    best = state.best.get("score")
    if best is not None and score >= float(best):
        state.best["worse"] = state.best["worse"] + 1
        return False
    kept = {f"weights.{name}": tensor.detach().clone() for name, tensor in state.trained.items()}
    state.best = kept | {"score": torch.tensor(score, dtype=torch.float64), "worse": torch.tensor(0)}
    return True


def ran_out(state: TrainState, patience: int) -> bool:
    """Whether that many scores in a row were no better; never with patience 0."""
    return patience > 0 and int(state.best.get("worse", 0)) >= patience


@torch.no_grad()
def restore(state: TrainState) -> None:
    """Give the model its best weights, if any were remembered, and forget them."""
    for name, tensor in state.trained.items():
        if f"weights.{name}" in state.best:
            tensor.copy_(state.best[f"weights.{name}"])
    state.round()
    state.best = {}
