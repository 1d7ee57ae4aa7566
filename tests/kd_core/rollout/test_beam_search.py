from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kd_core.models.t5 import encode
from kd_core.rollout.beam_search import BeamSettings, _advance, _start, beam_search
from kd_core.rollout.responses import mask_through_eos

SOURCE = torch.randint(2, 11, (12, 5), generator=torch.Generator().manual_seed(0))
SOURCE_MASK = torch.arange(5)[None] < torch.tensor([5, 3, 1, 4, 2, 5, 3, 1, 4, 2, 5, 4])[:, None]


@pytest.mark.usefixtures("exact_layer_norm")
@pytest.mark.parametrize("no_repeat", [0, 2, 3])
@pytest.mark.parametrize("length_penalty", [1.0, 0.6, 2.0])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_hypotheses_equal_stock_generate(
    make_t5: Callable[..., Any], no_repeat: int, length_penalty: float, num_beams: int
) -> None:
    limit, lengths = 9, set()
    for seed in range(4):
        model = make_t5(seed=seed, sharpness=0.7)
        settings = BeamSettings(
            num_beams=num_beams, max_new_tokens=limit, no_repeat_ngram_size=no_repeat, length_penalty=length_penalty
        )
        with torch.no_grad():
            ours = beam_search(model, encode(model, SOURCE, SOURCE_MASK), settings)
        stock = model.generate(
            input_ids=SOURCE,
            attention_mask=SOURCE_MASK.long(),
            num_beams=num_beams,
            max_new_tokens=limit,
            no_repeat_ngram_size=no_repeat,
            do_sample=False,
            **({"length_penalty": length_penalty} if num_beams > 1 else {}),
            output_scores=True,
            return_dict_in_generate=True,
        )
        tokens = F.pad(stock.sequences[:, 1:], (0, limit - (stock.sequences.shape[1] - 1)))
        mask = mask_through_eos(tokens, 1)
        assert torch.equal(mask_through_eos(ours.tokens_BT, 1), mask)
        assert torch.equal(ours.tokens_BT * mask, tokens * mask)
        if num_beams > 1:
            score = ours.log_prob_B / mask.sum(1) ** length_penalty
            torch.testing.assert_close(score.double(), stock.sequences_scores.double(), atol=1e-5, rtol=1e-5)
        lengths |= set(mask.sum(1).tolist())
    assert len(lengths) > 2 or length_penalty > 1, "all outputs are equally long: ending was not tested"


@pytest.mark.parametrize(("field", "value"), [("num_beams", 0), ("max_new_tokens", -1), ("no_repeat_ngram_size", -1)])
def test_settings_out_of_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*, got {value}"):
        BeamSettings(**{field: value})


def test_as_many_beams_go_on_as_before_however_many_ends_are_more_probable() -> None:
    ends, settings = [1, 2, 3], BeamSettings(num_beams=2, max_new_tokens=3)
    beams = _start(torch.tensor([0]), 2, 3, 0)
    log_q = torch.full((1, 2, 9), -20.0)
    log_q[0, 0, [5, 1, 2, 3, 6]] = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0])
    _advance(beams, log_q, 0, ends, settings)
    assert beams.running_BKT[0, :, 1].tolist() == [5, 6]
    assert beams.running_score_BK.tolist() == [[-1.0, -5.0]]
    assert beams.finished_BKT[0, 0, 1] == 1
