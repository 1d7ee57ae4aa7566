"""Pre-training on running text against the stock model's own loss."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kd_core.train.language_model import PretrainSettings, text_loss, train_language_model
from kd_core.train.state import OptimizerSettings, TrainState
from tests.kd_core.windows.test_gpt_neo import V, exact_attention, tiny_gpt_neo

__all__ = ["exact_attention"]

TEXT = torch.randint(0, V, (150,), generator=torch.Generator().manual_seed(3))
SETTINGS = PretrainSettings(
    block=8, batch_rows=4, max_steps=9, validate_every=3, optimizer=OptimizerSettings(learning_rate=1e-2)
)


@pytest.mark.usefixtures("exact_attention")
def test_the_loss_of_a_text_is_that_of_the_stock_model_on_its_blocks() -> None:
    model = tiny_gpt_neo(window=4)
    nll = []
    for start in range(0, len(TEXT) - 8, 8):
        block = TEXT[start : start + 9]
        with torch.no_grad():
            nll.append(F.cross_entropy(model(block[None, :-1]).logits[0], block[1:], reduction="none"))
    assert text_loss(model, TEXT, 8, batch_rows=5) == pytest.approx(float(torch.cat(nll).mean()), abs=1e-11)


def test_training_learns_and_every_weight_moves() -> None:
    model, before = tiny_gpt_neo(), tiny_gpt_neo()
    text = torch.arange(V).repeat(20)  # each token tells the next
    settings = replace(SETTINGS, max_steps=60)
    rows = list(train_language_model(TrainState.start(model, settings.optimizer), text, text, settings, 0))
    assert rows[-1].values["validation_loss"] < 0.5 * rows[2].values["validation_loss"]
    assert [row.step for row in rows if "validation_loss" in row.values] == list(range(3, 61, 3))
    for (name, a), b in zip(model.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(a, b), name


def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    unbroken = TrainState.start(tiny_gpt_neo(), SETTINGS.optimizer)
    rows = list(train_language_model(unbroken, TEXT, TEXT, SETTINGS, 0))
    for killed_at in (1, 4, 8):
        broken = TrainState.start(tiny_gpt_neo(), SETTINGS.optimizer)
        for row in train_language_model(broken, TEXT, TEXT, SETTINGS, 0):
            if row.step == killed_at:
                break
        broken.save(tmp_path, [])
        resumed = TrainState.start(tiny_gpt_neo(seed=9), SETTINGS.optimizer)
        resumed.load(tmp_path)
        again = list(train_language_model(resumed, TEXT, TEXT, SETTINGS, 0))
        assert [row.values for row in again] == [row.values for row in rows[killed_at:]]
        for a, b in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_text_shorter_than_its_blocks_is_refused() -> None:
    state = TrainState.start(tiny_gpt_neo(), SETTINGS.optimizer)
    with pytest.raises(ValueError, match="shorter than its blocks of 8 tokens: 16 tokens to train on"):
        next(train_language_model(state, TEXT[:16], TEXT, SETTINGS, 0))
